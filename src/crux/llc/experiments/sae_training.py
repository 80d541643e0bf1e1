"""The learning coefficient along the training of a sparse autoencoder, for the loss that it trains for and for its reconstructions.

The SAE reads the hidden layer of a toy model: of an exact pentagon (five features in two dimensions, one active at a time), or of
model.path's. It trains on a finite set of samples, all of them at every step, so that there is a minimum to end in.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.config.schema import Config
from crux.llc.experiments.kgons import Kgon, polished
from crux.llc.experiments.sae_losses import local_loss_of, parameters, reconstructions_of
from crux.llc.experiments.sampling import keys, nbetas
from crux.llc.experiments.toy_models import stacked_weights, thinning
from crux.llc.experiments.training_curves import along_training
from crux.llc.losses import Fixed
from crux.runs.experiment import AddRow
from crux.runs.result import Result
from crux.runs.run_folder import RunFolder
from crux.sae import assemble
from crux.sae.architectures.site import Site
from crux.sae.training.passes import ActivationPasses
from crux.sae.training.sae_module import SAEModule
from crux.toy.features import FeatureDistribution, Purpose, Together
from crux.toy.folder import HOOK, toy_folder
from crux.toy.program import Program
from crux.toy.sae_job import typical
from crux.toy.sae_outputs import HiddenActivations
from crux.toy.subject import ToySubject, load_toy
from crux.toy.superposition import Kind, Weights
from crux.training.data import Feed
from crux.training.fit import fit


class Watched(SAEModule):
    """Keeps copies of its SAE's weights after some steps."""

    chosen: frozenset[int]
    kept: dict[int, dict[str, Tensor]]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.global_step in self.chosen:
            self.kept[self.global_step] = parameters(self.sites[0].sae)


def pentagon() -> ToySubject:
    """The toy model at its exact 5-gon."""
    found, n = polished([Kgon(5, 0, 5)]), 5
    program = Program(
        name="pentagon",
        kind=Kind.relu_output,
        n_hidden=2,
        features=FeatureDistribution(Together.one_active, 1, False),
        seeds=torch.zeros(1, dtype=torch.long),
        density=torch.full((1, n), 1 / n),
        importance=torch.ones(1, 1, n),
        points=None,
    )
    return ToySubject(program, Weights(found["W"][:, None].float(), found["b"][:, None].float(), None))


def subject_of(config: Config) -> ToySubject:
    """The toy model of model.path, or the pentagon. Raises UserError where the folder holds none."""
    if config.model.path is None:
        return pentagon()
    folder = toy_folder(Path(config.model.path))
    if folder is None:
        raise UserError(f"model.path={config.model.path}: must be the run folder of a toy experiment")
    return load_toy(folder, config.model.instance)


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """See `along_training`."""
    llc = keys(config)
    assert llc.checkpoints is not None
    assert llc.samples is not None
    subject, steps = subject_of(config), config.trainer.max_steps
    program = subject.program._replace(points=llc.samples, seeds=torch.tensor([config.seed]))
    features = program.data(batch=llc.samples, n_batches=steps, purpose=Purpose.training)
    first = typical(subject)
    sae, options = assemble.build_sae(config, read=first, written=first), assemble.loss_options(config)
    module = assemble.sae_module(
        config,
        [Site(HOOK, HOOK, sae)],
        passes=ActivationPasses(max_norm=options.max_norm),
        loss=assemble.build_loss(options),
        kind=Watched,
    )
    module.chosen, module.kept = frozenset(thinning(steps, llc.checkpoints)), {0: parameters(sae)}
    fit(
        module,
        Feed(HiddenActivations(features, subject=subject, hook=HOOK), accumulate=1),
        pace=assemble.pace(config)._replace(
            accumulate=1,
            tokens_per_step=llc.samples,
            unit="samples",
            val_every=0,
            accelerator="cpu",
            precision="32-true",
        ),
        checkpoints=job.checkpoint.parent,
        resume=None,
        sinks=[add_row],
        judge=None,
        shown={"train/loss": "loss", "train/l0": "L0"},
        abandoned=None,
    )
    trained = module.sites[0].sae.cpu()
    with torch.no_grad():
        x = subject.hidden(features[0][0]).double()
    weight = float(module.sparsity.weight[0])
    own = local_loss_of(trained, reconstruction=config.loss.reconstruction, sparsity=weight)
    data = Fixed(x)
    return along_training(
        config,
        add_row,
        steps=list(module.kept),
        params=stacked_weights(module.kept, repeat=len(nbetas(llc))),
        own=own,
        own_data=data,
        outputs=reconstructions_of(trained),
        data=data,
        about=f"{config.sae.name} SAE of {trained.n_latents} latents on {subject.program.name}, λ = {weight:g}, {llc.samples} samples",
        loss_label="the SAE's own loss",
    )
