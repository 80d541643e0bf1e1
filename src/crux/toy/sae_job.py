"""A job that trains an SAE on a toy model and evaluates it on the hidden layer, on the output, and against the true features."""

from collections.abc import Mapping
from pathlib import Path

import torch
from rich.table import Table

from crux.config.console import make_console
from crux.runs.life_cycle import ActiveRun, PreparedJob, RunOutcome, run_job
from crux.runs.run_folder import RunFolder
from crux.sae import results
from crux.sae.architectures.site import Site
from crux.sae.build import build_loss, build_sae, build_sae_module
from crux.sae.evaluation.typical_activation import TypicalActivation
from crux.sae.figures.densities import plot_densities
from crux.sae.formats import saelens
from crux.sae.losses.options import E2E
from crux.sae.training.passes import ActivationPasses
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity, Steering
from crux.toy.evaluate import ToyEvaluationResult, evaluate_on_toy
from crux.toy.features import Purpose
from crux.toy.figures.recovery import plot_recovery
from crux.toy.folder import HOOK, find_toy_model
from crux.toy.geometry.recovery import MIN_RECOVERED_COSINE
from crux.toy.options import ToySaeJob
from crux.toy.sae_outputs import HiddenActivations, OutputLoss
from crux.toy.subject import ToySubject, load_toy_subject
from crux.training.callbacks import make_callbacks
from crux.training.checkpoints import checkpoint_step
from crux.training.data import Feed
from crux.training.devices import CPU
from crux.training.fit import fit


def run(config: ToySaeJob, *, folder: Path | None) -> RunFolder:
    """Train an SAE on a toy model and evaluate it.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.

    Raises:
        NonFiniteLossError: if the loss is not finite.
    """
    return run_job(config, folder=folder, prepare=lambda: ToySaeTraining(config).prepared_job())


class ToySaeTraining:
    """The training and evaluation of an SAE on a loaded toy model."""

    def __init__(self, config: ToySaeJob) -> None:
        torch.manual_seed(config.seed)
        self.config, trainer = config, config.trainer
        self.subject = load_toy_subject(find_toy_model(config.model.path), config.model.instance)
        self.features = self.subject.features(
            batch=config.samples,
            n_batches=trainer.max_steps * trainer.accumulate,
            seed=config.seed,
            purpose=Purpose.training,
        )
        hidden = typical_hidden_activation(self.subject)
        self.site = Site(HOOK, HOOK, build_sae(config.sae, read=hidden, written=hidden, seed=config.seed))
        self.module = self.build_module()

    def build_module(self) -> SAEModule:
        """Return the Lightning module that trains the SAE: end to end on the output, or on hidden activations."""
        config, options = self.config, self.config.loss
        loss = OutputLoss(options, subject=self.subject) if isinstance(options, E2E) else build_loss(options)
        passes = ActivationPasses(max_norm=options.max_norm)
        steering = Steering(config.target_l0, config.trainer.max_steps) if config.target_l0 is not None else None
        sparsity = Sparsity(config.sparsity, n_saes=1, steering=steering)
        return build_sae_module(config, [self.site], passes=passes, loss=loss, sparsity=sparsity, runs=())

    def prepared_job(self) -> PreparedJob:
        """Return the work of the job, for its life cycle."""
        return PreparedJob(
            name=results.file_stem(self.config.run_name()),
            execute=self.execute,
            last_row=lambda folder: checkpoint_step(folder.checkpoint),
            params={"n_latents": self.site.sae.n_latents},
            run_configs={},
        )

    def execute(self, run: ActiveRun) -> Mapping[str, RunOutcome]:
        """Train, evaluate, and write the SAE and its figures."""
        self.fit(run)
        evaluation = evaluate_on_toy(self.subject, self.site.sae.fold(), n_samples=self.config.evaluation.tokens)
        self.write_sae(run.folder)
        self.write_figures(run.folder, evaluation)
        metrics = {f"final/{name}": value for name, value in evaluation.metrics.items()}
        return {
            "": RunOutcome(
                metrics,
                lambda: show_toy_evaluation(f"{self.config.run_name()} on {self.config.model.path}", evaluation),
            )
        }

    def fit(self, run: ActiveRun) -> None:
        """Train the SAE."""
        trainer = self.config.trainer
        start = checkpoint_step(run.folder.checkpoint)
        fit(
            self.module,
            Feed(HiddenActivations(self.features, subject=self.subject, hook=HOOK), accumulate=trainer.accumulate),
            trainer=trainer,
            hardware=CPU,
            items_per_step=self.config.samples * trainer.accumulate,
            unit="samples",
            checkpoints=run.folder.checkpoint.parent,
            resume=run.folder.checkpoint if start else None,
            sinks=[run.add_row],
            evaluations=None,
            bar_labels={"train/loss": "loss", "train/l0": "L0"},
            callbacks=make_callbacks(self.config.callbacks),
            on_abandon=None,
        )

    def write_sae(self, folder: RunFolder) -> None:
        """Write the SAE with the metadata that evaluating it again requires."""
        config = self.config
        metadata = {
            "model_name": config.model.path,
            "hook_name": HOOK,
            "process_weights": False,
            "context_size": config.model.context,
            "prepend_bos": False,
            "dataset_path": "synthetic features",
            "sae": config.sae.name,
            "loss": config.loss.name,
            "sparsity": float(self.module.sparsity.weight[0]),
            "target_l0": config.target_l0,
            "seed": config.seed,
        }
        saelens.save_sae(self.site.sae, folder.path / "sae", metadata)

    def write_figures(self, folder: RunFolder, evaluation: ToyEvaluationResult) -> None:
        """Draw the loss during training, the firing densities, and the recovery of the true features."""
        results.write_loss_curves(folder, terms=self.module.loss.row_labels())
        drawn = {
            "densities": plot_densities(evaluation.densities.numpy(), n_tokens=self.config.evaluation.tokens),
            "recovery": plot_recovery(
                evaluation.recovery.cosine.numpy(),
                living=evaluation.recovery.living.numpy(),
                threshold=MIN_RECOVERED_COSINE,
            ),
        }
        for name, figure in drawn.items():
            results.save_figure(figure, folder.path / "figures" / f"{name}.png")


@torch.no_grad()
def typical_hidden_activation(subject: ToySubject) -> TypicalActivation:
    """Return the mean and the mean norm of the hidden activation, over samples that are used for nothing else."""
    h = subject.hidden(subject.features(batch=65_536, n_batches=1, seed=0, purpose=Purpose.initial)[0][0])
    return TypicalActivation(h.mean(0), float(h.norm(dim=1).mean()))


METRIC_LABELS = {
    "recovered": ("features recovered", f"share with a cosine above {MIN_RECOVERED_COSINE}"),
    "mean_max_cosine": ("features, mean max cosine", ""),
    "latents_mean_max_cosine": ("latents, mean max cosine", ""),
    "l0": ("L0", "latents/sample"),
    "loss_increase": ("increase of the network's loss", "summed over features, positive is worse"),
    "loss_clean": ("the network's loss", "summed over features"),
    "output_mse": ("MSE of the output", "output²"),
    "output_explained_variance": ("explained variance of the output", "share"),
    "explained_variance": ("explained variance, hidden", "share"),
    "mse": ("MSE, hidden", "activation²"),
    "cosine": ("cosine(ĥ, h)", ""),
    "norm_ratio": ("norm ratio ‖ĥ‖/‖h‖", ""),
}


def show_toy_evaluation(title: str, evaluation: ToyEvaluationResult) -> None:
    """Print the evaluation as a table."""
    console = make_console(width=110)
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("unit")
    for name, (label, unit) in METRIC_LABELS.items():
        table.add_row(label, f"{evaluation.metrics[name]:.4g}", unit)
    console.print(table)
