"""The modular-addition network: trained in the run folder, gone on with, or read from the folder that `model.path` names."""

from pathlib import Path
from typing import NamedTuple

import torch

from crux.config.schema import Config
from crux.degeneracy.networks.addition_folder import INSIDE, addition_folder
from crux.degeneracy.networks.modular_addition import ModularAddition, Pairs, Sizes, load, pairs, save
from crux.degeneracy.networks.modular_addition_module import AdditionModule, AdditionRecipe, EveryPair
from crux.runs.experiment import AddRow
from crux.runs.run_folder import RunFolder
from crux.sae import assemble
from crux.training.data import Feed
from crux.training.fit import checkpoint_step, fit


class Trained(NamedTuple):
    """What was trained, and on what."""

    network: ModularAddition
    tokens: Pairs


def last_row(job: RunFolder) -> int:
    """The row of a run's history that training goes on from; of a network that is trained, its last."""
    folder = job.path / INSIDE
    if (folder / "model.safetensors").exists():
        return max((int(row["step"]) for row in job.history()), default=0)
    return checkpoint_step(folder / "checkpoints" / "last.ckpt")


def trained_modular_addition(config: Config, job: RunFolder, add_row: AddRow) -> Trained:
    """The network of `model.path`, or the run's own, trained until it is right on all pairs that it never saw.

    Raises:
        UserError: where a loss stopped being a number, or the folder's weights are broken.
    """
    if config.model.path is not None:
        found = addition_folder(Path(config.model.path))
        assert found is not None, "checks_degeneracy has looked"
        return Trained(*load(found))
    folder = job.path / INSIDE
    if (folder / "model.safetensors").exists():
        return Trained(*load(folder))
    wanted, trainer, optimizer = (
        config.interaction_basis and config.interaction_basis.addition,
        config.trainer,
        config.optimizer,
    )
    assert wanted is not None
    tokens = pairs(wanted.p, train_share=wanted.train_share, seed=config.seed)
    network = ModularAddition(Sizes(wanted.p, wanted.d_model, wanted.n_heads, wanted.d_mlp))
    network.draw(torch.Generator().manual_seed(config.seed))
    module = AdditionModule(
        network,
        test=tokens.test,
        recipe=AdditionRecipe(
            lr=optimizer.lr,
            betas=(optimizer.betas[0], optimizer.betas[1]),
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            warmup_steps=optimizer.warmup_steps,
            min_lr_factor=optimizer.min_lr_factor,
            max_steps=trainer.max_steps,
            log_every=trainer.log_every,
            stop_when_right=wanted.stop_when_right,
        ),
    )
    checkpoint = folder / "checkpoints" / "last.ckpt"
    fit(
        module,
        Feed(EveryPair(tokens.train, n_batches=trainer.max_steps), accumulate=1),
        pace=assemble.pace(config)._replace(tokens_per_step=len(tokens.train), unit="pairs", val_every=0),
        checkpoints=checkpoint.parent,
        resume=checkpoint if checkpoint_step(checkpoint) else None,
        sinks=[add_row],
        judge=None,
        shown={"train/loss": "loss", "val/loss": "held out", "val/accuracy": "right"},
        abandoned=None,
    )
    save(folder, module.cpu().network, train_share=wanted.train_share, seed=config.seed)
    checkpoint.unlink(missing_ok=True)
    return Trained(*load(folder))
