"""The random generator for labels that are drawn from the network's predictions."""

import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.training import ranks

SEED_STEP_PER_RANK = 1_000_003
"""Difference between the seeds of successive processes; so large that no seed of another run has the same value."""


class DrawnLabels:
    """The generator of drawn labels, on the device. Each process has its own; a checkpoint holds the states of all."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generator: torch.Generator | None = None
        self._loaded: Tensor | None = None

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator; it is created at the first call, since a checkpoint is loaded before the module is on its device."""
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed + SEED_STEP_PER_RANK * ranks.current_rank())
            if self._loaded is not None:
                self._generator.set_state(self._loaded)
        return self._generator

    def state(self, device: torch.device) -> Tensor:
        """Return the state for a checkpoint: that of the generator, or one per process if there are several."""
        state = self.generator(device).get_state()
        return ranks.gather(state.to(device)).cpu() if ranks.n_ranks() > 1 else state

    def load(self, state: Tensor) -> None:
        """Continue from the state in a checkpoint.

        Raises:
            UserError: if the checkpoint is from a run on another number of devices.
        """
        states = torch.atleast_2d(state.cpu())
        if len(states) != ranks.n_ranks():
            raise UserError(
                f"the checkpoint is from a run on {len(states)} devices, not {ranks.n_ranks()}; give trainer.devices={len(states)}"
            )
        self._generator = None
        self._loaded = states[ranks.current_rank()].clone()  # set_state reads from the beginning of the storage
