"""The unfinished row of the training history: sums on the device, which are read once per row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor


class RowState(TypedDict):
    """The state of an unfinished row in a checkpoint."""

    sums: dict[str, Tensor]
    micro_batches: int


class RunningRow:
    """The sums, over the micro-batches since the last row, of the values that the history records.

    Args:
        hooks: the hook point that each SAE writes, which is appended to the keys of values that are given per SAE.
        separate: whether each SAE is a separate run with its own values; otherwise all SAEs are one run.
    """

    def __init__(self, hooks: Sequence[str], *, separate: bool) -> None:
        self.hooks, self.separate = tuple(hooks), separate
        self.sums: dict[str, Tensor] = {}
        self.micro_batches = 0

    def add(self, values: Mapping[str, Sequence[Float[Tensor, ""]]]) -> None:
        """Add the values of a micro-batch, given per SAE or per run.

        In a single run, the mean over the SAEs is added, or the sum for L0, and each SAE's value under its own key.
        """
        for name, per_sae in values.items():
            stacked = torch.stack(list(per_sae))
            if self.separate:
                self._add(name, stacked)
                continue
            self._add(name, stacked.sum() if name == "l0" else stacked.mean())
            if len(per_sae) > 1:
                for hook, value in zip(self.hooks, per_sae, strict=True):
                    self._add(f"{name}/{hook}", value)
        self.micro_batches += 1

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def means(self) -> dict[str, Tensor]:
        """Return the means over the micro-batches; one value per run if runs are separate."""
        return {name: sums / self.micro_batches for name, sums in self.sums.items()}

    def forget_run(self, i: int) -> None:
        """Set the sums of a failed run to zero."""
        for sums in self.sums.values():
            sums[i] = 0.0

    def clear(self) -> None:
        """Start the next row."""
        self.sums, self.micro_batches = {}, 0

    def state(self) -> RowState:
        """Return the state of the row for a checkpoint."""
        return {"sums": self.sums, "micro_batches": self.micro_batches}

    def load(self, state: RowState) -> None:
        """Continue the row from a checkpoint; its sums are on the CPU until `move_to` is called."""
        self.sums, self.micro_batches = dict(state["sums"]), state["micro_batches"]

    def move_to(self, device: torch.device) -> None:
        """Move the sums to the device on which the following micro-batches are computed."""
        self.sums = {name: value.to(device) for name, value in self.sums.items()}


class LogRows(L.Callback):
    """Logs one row every `every` optimiser steps.

    This is a callback because Lightning calls the hooks of a module after it has written checkpoints. If the process were killed
    between the checkpoint and the row of the same step, that row would be lost.
    """

    def __init__(self, read: Callable[[], dict[str, float]], *, every: int) -> None:
        self.read, self.every = read, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % self.every:
            return
        row = self.read()
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)
