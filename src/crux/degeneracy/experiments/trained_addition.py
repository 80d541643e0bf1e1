"""The trained modular-addition network: trained in the run folder (or resumed there), or loaded from `model.path`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from crux.config.schema import Adam, Precision, Trainer
from crux.degeneracy.basis_options import Addition
from crux.degeneracy.networks.addition_folder import RUN_SUBFOLDER, find_addition_folder
from crux.degeneracy.networks.modular_addition import ModularAddition, Pairs, load_addition, save_addition, split_pairs
from crux.degeneracy.networks.modular_addition_module import AdditionModule, RepeatedBatch
from crux.runs.experiment import last_row_of_history
from crux.runs.life_cycle import ActiveRun
from crux.runs.run_folder import RunFolder
from crux.training.callbacks import make_callbacks
from crux.training.checkpoints import checkpoint_step, remove_checkpoints
from crux.training.data import Feed
from crux.training.devices import choose_hardware
from crux.training.fit import fit


class TrainedAddition(NamedTuple):
    """A trained network with its training pairs and held-out pairs."""

    network: ModularAddition
    tokens: Pairs


def last_addition_row(folder: RunFolder) -> int:
    """Return the last row of the history to keep when a run is resumed: the step of its checkpoint, or all rows if training is complete."""
    network = folder.path / RUN_SUBFOLDER
    if (network / "model.safetensors").exists():
        return last_row_of_history(folder)
    return checkpoint_step(network / "checkpoints" / "last.ckpt")


def load_addition_network(path: str) -> TrainedAddition:
    """Load the network in a folder that has been checked.

    Raises:
        UserError: if its weights do not match its config.json.
    """
    folder = find_addition_folder(Path(path))
    assert folder is not None
    return TrainedAddition(*load_addition(folder))


def train_in_run(
    options: Addition, *, optimizer: Adam, trainer: Trainer, callbacks: Mapping[str, Any], run: ActiveRun
) -> TrainedAddition:
    """Train the network in the run folder, resuming from a checkpoint if there is one, or load it if it is already trained.

    Args:
        callbacks: options of the user's Lightning callbacks, by any name.

    Raises:
        UserError: if the loss becomes non-finite.
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
        remove_checkpoints(checkpoint)
    return TrainedAddition(*load_addition(folder))
