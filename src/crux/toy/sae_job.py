"""Trains an SAE on a toy model and judges it: by the hidden layer, by the output, and by the features that are known."""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from crux.config.schema import Config, to_plain
from crux.runs.run_folder import RunFolder, new_path
from crux.runs.tracking import earlier_run, how_to_compare, run_name, tracked
from crux.sae import assemble, report
from crux.sae.architectures.site import Site
from crux.sae.evaluation.mean import Typical
from crux.sae.figures.densities import density_histogram
from crux.sae.losses.options import E2E
from crux.sae.training.passes import ActivationPasses
from crux.toy.evaluate import ToyJudgement, judge_on_toy
from crux.toy.features import Purpose
from crux.toy.figures.recovery import toy_recovery
from crux.toy.folder import HOOK, toy_folder
from crux.toy.geometry.recovery import RECOVERED
from crux.toy.sae_outputs import HiddenActivations, OutputLoss, OutputPasses
from crux.toy.subject import ToySubject, load_toy
from crux.training.data import Feed
from crux.training.fit import checkpoint_step, fit


def train_on_toy(config: Config, *, folder: Path | None) -> None:
    """One job, top to bottom, as `run.train` is for language models.

    Raises:
        NonFiniteLossError: where the loss stopped being a number.
    """
    torch.manual_seed(config.seed)
    earlier = earlier_run(config, folder)
    if earlier is not None and earlier.done:
        print(f"{run_name(config)}: done before, in {earlier.path}")
        return
    assert config.model.path is not None
    place = toy_folder(Path(config.model.path))
    assert place is not None
    subject = load_toy(place, config.model.instance)
    trainer = config.trainer
    samples = trainer.batch * config.model.context
    features = subject.features(
        batch=samples, n_batches=trainer.max_steps * trainer.accumulate, seed=config.seed, purpose=Purpose.training
    )
    site = Site(HOOK, HOOK, assemble.build_sae(config, read=typical(subject), written=typical(subject)))
    options = assemble.loss_options(config)
    if isinstance(options, E2E):
        passes, loss = OutputPasses(subject, max_norm=options.max_norm), OutputLoss(options, subject=subject)
        source = features
    else:
        passes, loss = ActivationPasses(max_norm=options.max_norm), assemble.build_loss(options)
        source = HiddenActivations(features, subject=subject, hook=HOOK)
    module = assemble.sae_module(config, [site], passes=passes, loss=loss)

    job = earlier or RunFolder.create(
        folder or new_path(Path(config.output_dir), report.stem(config)), to_plain(config)
    )
    start = checkpoint_step(job.checkpoint)
    job.forget_after(start)
    with tracked(config, job, params={"n_latents": site.sae.n_latents}) as tracker:

        def add_row(step: int, row: dict[str, float]) -> None:
            job.add_row(step, row)
            if tracker is not None:
                tracker.metrics(step, row)

        fit(
            module,
            Feed(source, accumulate=trainer.accumulate),
            pace=assemble.pace(config)._replace(
                tokens_per_step=samples * trainer.accumulate,
                unit="samples",
                val_every=0,
                accelerator="cpu",
                precision="32-true",
            ),
            checkpoints=job.checkpoint.parent,
            resume=job.checkpoint if start else None,
            sinks=[add_row],
            judge=None,
            shown={"train/loss": "loss", "train/l0": "L0"},
            abandoned=None,
        )
        found = judge_on_toy(subject, site.sae.folded(), n_samples=config.evaluation.tokens)
        metrics = {f"final/{name}": value for name, value in found.metrics.items()}
        report.write_saes(job, config, [site], module.sparsity.weight.tolist())
        report.write_loss_curves(job, module.loss.row_labels())
        figures = job.path / "figures"
        report.save_figure(
            density_histogram(found.densities.numpy(), n_tokens=config.evaluation.tokens), figures / "densities.png"
        )
        report.save_figure(
            toy_recovery(found.recovery.cosine.numpy(), living=found.recovery.living.numpy(), threshold=RECOVERED),
            figures / "recovery.png",
        )
        job.write_metrics(metrics)
        if tracker is not None:
            tracker.metrics(0, metrics)
            tracker.files(job.path)
        job.finish()
    show(config, job, found)


@torch.no_grad()
def typical(subject: ToySubject) -> Typical:
    """The hidden activation's first moments, over samples of their own."""
    h = subject.hidden(subject.features(batch=65_536, n_batches=1, seed=0, purpose=Purpose.initial)[0][0])
    return Typical(h.mean(0), float(h.norm(dim=1).mean()))


ROWS = {
    "recovered": ("features recovered", f"share with a cosine above {RECOVERED}"),
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


def show(config: Config, job: RunFolder, found: ToyJudgement) -> None:
    """The judgement as a table, and where everything lies."""
    console = Console(width=None if Console().is_terminal else 110, highlight=False)
    table = Table(title=f"{run_name(config)} on {config.model.path}", title_justify="left")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("unit")
    for name, (label, unit) in ROWS.items():
        table.add_row(label, f"{found.metrics[name]:.4g}", unit)
    console.print(table)
    console.print(f"run folder  {job.path}", soft_wrap=True)
    if config.tracking.mlflow:
        console.print(f"compare     {how_to_compare(config)}", soft_wrap=True)
