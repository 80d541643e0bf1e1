"""The learning coefficient at checkpoints of a sparse autoencoder's training, for its training loss and for its reconstructions.

The SAE reads the hidden layer of a toy model: an exact pentagon (five features in two dimensions, one active at a time) or that of
`model.path`. It trains on a finite set of samples, all of them at every step, so that the training loss has a minimum.
"""

from typing import Any

import torch
from torch import Tensor

from crux.llc.experiments.kgons import Kgon, optimise_kgons
from crux.llc.experiments.sae_losses import copy_weights, sae_loss, sae_reconstructions
from crux.llc.experiments.toy_models import spaced_steps
from crux.llc.experiments.training_curves import TrainingCourse, estimate_along_training
from crux.llc.losses import FixedData
from crux.llc.options import SaeTrainingJob, ToyInstance
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result
from crux.sae.architectures.site import Site
from crux.sae.build import build_loss, build_sae, build_sae_module
from crux.sae.losses.options import Local
from crux.sae.training.passes import ActivationPasses
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity
from crux.toy.features import FeatureBatches, FeatureDistribution, Purpose
from crux.toy.folder import HOOK, find_toy_model
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program
from crux.toy.sae_job import typical_hidden_activation
from crux.toy.sae_outputs import HiddenActivations
from crux.toy.subject import ToySubject, load_toy_subject
from crux.toy.superposition import Weights
from crux.training.callbacks import make_callbacks
from crux.training.checkpoints import checkpoint_step
from crux.training.data import Feed
from crux.training.devices import CPU
from crux.training.fit import fit

LOSS = Local(
    _target_="crux.sae.losses.local.LocalLoss",
    name="local",
    default_sparsity=0.0,
    skip_positions=[],
    reconstruction=1.0,
)
"""Training loss of the SAE; `sparsity` is the weight of its penalty."""


class SnapshotModule(SAEModule):
    """An SAE module that copies its SAE's weights after some steps; checkpoints contain these copies."""

    snapshot_steps: frozenset[int]
    snapshots: dict[int, dict[str, Tensor]]

    def take_snapshot(self) -> None:
        """Copy the weights if this step is one of `snapshot_steps`."""
        if self.global_step in self.snapshot_steps:
            self.snapshots[self.global_step] = copy_weights(self.sites[0].sae)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.take_snapshot()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.take_snapshot()  # Lightning writes checkpoints before it calls on_train_batch_end
        super().on_save_checkpoint(checkpoint)
        checkpoint["kept"] = self.snapshots

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.snapshots = checkpoint["kept"]


def pentagon_subject() -> ToySubject:
    """Build the toy model at its exact 5-gon."""
    weights, n = optimise_kgons([Kgon(5, 0, 5)]), 5
    program = Program(
        name="pentagon",
        kind=Kind.relu_output,
        n_hidden=2,
        distribution=FeatureDistribution(Cooccurrence.one_active, 1, False),
        seeds=torch.zeros(1, dtype=torch.long),
        density=torch.full((1, n), 1 / n),
        importance=torch.ones(1, 1, n),
        points=None,
    )
    return ToySubject(program, Weights(weights["W"][:, None].float(), weights["b"][:, None].float(), None))


def choose_subject(model: ToyInstance) -> ToySubject:
    """Return the toy model of `model.path`, or the pentagon if it is not given."""
    return pentagon_subject() if model.path is None else load_toy_subject(find_toy_model(model.path), model.instance)


def train_sae_on_toy(
    job: SaeTrainingJob, run: ActiveRun, subject: ToySubject, features: FeatureBatches
) -> SnapshotModule:
    """Train the SAE on batches of features, or resume an earlier start; return the module with its snapshots."""
    moments, checkpoint = typical_hidden_activation(subject), run.folder.checkpoint
    sae = build_sae(job.sae, read=moments, written=moments, seed=run.seed)
    module = build_sae_module(
        job,
        [Site(HOOK, HOOK, sae)],
        passes=ActivationPasses(max_norm=None),
        loss=build_loss(LOSS),
        sparsity=Sparsity(job.sparsity, n_saes=1, steering=None),
        runs=(),
        kind=SnapshotModule,
    )
    module.snapshot_steps = frozenset(spaced_steps(job.trainer.max_steps, job.llc.checkpoints))
    module.snapshots = {0: copy_weights(sae)}
    fit(
        module,
        Feed(HiddenActivations(features, subject=subject, hook=HOOK), accumulate=1),
        trainer=job.trainer,
        hardware=CPU,
        items_per_step=job.llc.samples,
        unit="samples",
        checkpoints=checkpoint.parent,
        resume=checkpoint if checkpoint_step(checkpoint) else None,
        sinks=[run.add_row],
        evaluations=None,
        bar_labels={"train/loss": "loss", "train/l0": "L0"},
        callbacks=make_callbacks(job.callbacks),
        on_abandon=None,
    )
    return module


def result(job: SaeTrainingJob, run: ActiveRun) -> Result:
    """Estimate at checkpoints of the training; see `estimate_along_training`."""
    subject, steps, samples = choose_subject(job.model), job.trainer.max_steps, job.llc.samples
    program = subject.program._replace(points=samples, seeds=torch.tensor([run.seed]))
    features = program.data(batch=samples, n_batches=steps, purpose=Purpose.training)
    module = train_sae_on_toy(job, run, subject, features)
    sae, weight = module.sites[0].sae.cpu(), float(module.sparsity.weight[0])
    with torch.no_grad():
        data = FixedData(subject.hidden(features[0][0]).double())
    course = TrainingCourse(
        checkpoints=module.snapshots,
        training_loss=sae_loss(sae, reconstruction=LOSS.reconstruction, sparsity=weight),
        training_data=data,
        outputs=sae_reconstructions(sae),
        data=data,
        about=f"{job.sae.name} SAE of {sae.n_latents} latents on {program.name}, λ = {weight:g}, {samples} samples",
        loss_label="training loss of the SAE",
        max_steps=steps,
    )
    return estimate_along_training(job.llc, run, course)


EXPERIMENT = Experiment(SaeTrainingJob, result, lambda folder: checkpoint_step(folder.checkpoint))
