"""The modular-addition network: trained in the run folder, resumed there, or read from the folder that `model.path` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from crux.config.schema import Adam, Precision, Trainer
from crux.degeneracy.basis_options import Addition
from crux.degeneracy.networks.addition_folder import RUN_SUBFOLDER, find_addition_folder
from crux.degeneracy.networks.modular_addition import ModularAddition, Pairs, load_addition, save_addition, split_pairs
from crux.degeneracy.networks.modular_addition_module import AdditionModule, RepeatedBatch
from crux.runs.experiment import keep_all_rows
from crux.runs.life_cycle import ActiveRun
from crux.runs.run_folder import RunFolder
from crux.training.callbacks import make_callbacks
from crux.training.data import Feed
from crux.training.devices import choose_hardware
from crux.training.fit import checkpoint_step, fit


class TrainedAddition(NamedTuple):
    """A trained network, and the pairs that it was trained on and not."""

    network: ModularAddition
    tokens: Pairs


def last_addition_row(folder: RunFolder) -> int:
    """Return the row of a run's history that training continues from; its last one if the network is trained."""
    network = folder.path / RUN_SUBFOLDER
    if (network / "model.safetensors").exists():
        return keep_all_rows(folder)
    return checkpoint_step(network / "checkpoints" / "last.ckpt")


def load_addition_network(path: str) -> TrainedAddition:
    """Return the network in a folder, which has been checked.

    Raises:
        UserError: if its weights are broken.
    """
    folder = find_addition_folder(Path(path))
    assert folder is not None
    return TrainedAddition(*load_addition(folder))


def train_in_run(
    options: Addition, *, optimizer: Adam, trainer: Trainer, callbacks: Mapping[str, Any], run: ActiveRun
) -> TrainedAddition:
    """Return the run's own network, trained until it is right on all pairs that it never saw.

    Args:
        callbacks: options of Lightning callbacks of the user's own, by any name.

    Raises:
        UserError: if the loss stopped being a number.
    """
    folder = run.folder.path / RUN_SUBFOLDER
    if not (folder / "model.safetensors").exists():
        tokens = split_pairs(options.p, train_share=options.train_share, seed=run.seed)
        network = ModularAddition(options)
        network.init_weights(torch.Generator().manual_seed(run.seed))
        module = AdditionModule(
            network,
            test=tokens.test,
            optimizer=optimizer,
            trainer=trainer,
            stop_when_right=options.stop_when_right,
        )
        checkpoint = folder / "checkpoints" / "last.ckpt"
        fit(
            module,
            Feed(RepeatedBatch(tokens.train, n_batches=trainer.max_steps), accumulate=1),
            trainer=trainer,
            hardware=choose_hardware(trainer.accelerator, precision=Precision.float32, devices=1),
            items_per_step=len(tokens.train),
            unit="pairs",
            checkpoints=checkpoint.parent,
            resume=checkpoint if checkpoint_step(checkpoint) else None,
            sinks=[run.add_row],
            evaluations=None,
            bar_labels={"train/loss": "loss", "val/loss": "held out", "val/accuracy": "right"},
            callbacks=make_callbacks(callbacks),
            on_abandon=None,
        )
        save_addition(folder, module.cpu().network, train_share=options.train_share, seed=run.seed)
        checkpoint.unlink(missing_ok=True)
    return TrainedAddition(*load_addition(folder))
