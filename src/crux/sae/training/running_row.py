"""The row of the history that is being filled: sums on the device, read once per row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor


class RowState(TypedDict):
    """What a checkpoint holds of an unfinished row."""

    sums: dict[str, Tensor]
    micro_batches: int


class RunningRow:
    """Sums of the values that micro-batches showed since the last row.

    Args:
        hooks: by SAE, the hook point that it writes; keys of values that are one per SAE end with it.
        separate: whether each SAE is a run of its own, with a column of its own; otherwise all are one.
    """

    def __init__(self, hooks: Sequence[str], *, separate: bool) -> None:
        self.hooks, self.separate = tuple(hooks), separate
        self.sums: dict[str, Tensor] = {}
        self.micro_batches = 0

    def add(self, values: Mapping[str, Sequence[Float[Tensor, ""]]]) -> None:
        """Add a micro-batch's values, which are one per SAE or one per run. Of one run, the mean over its SAEs is added, of L0 the sum."""
        for name, each in values.items():
            stacked = torch.stack(list(each))
            if self.separate:
                self._add(name, stacked)
                continue
            self._add(name, stacked.sum() if name == "l0" else stacked.mean())
            if len(each) > 1:
                for hook, value in zip(self.hooks, each, strict=True):
                    self._add(f"{name}/{hook}", value)
        self.micro_batches += 1

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()

    def means(self) -> dict[str, Tensor]:
        """Return the means over the micro-batches, by run or one in all."""
        return {name: sums / self.micro_batches for name, sums in self.sums.items()}

    def forget_run(self, i: int) -> None:
        """Zero the sums of a run that has ended."""
        for sums in self.sums.values():
            sums[i] = 0.0

    def clear(self) -> None:
        """Start the next row."""
        self.sums, self.micro_batches = {}, 0

    def state(self) -> RowState:
        """Return what a checkpoint holds of the row."""
        return {"sums": self.sums, "micro_batches": self.micro_batches}

    def load(self, state: RowState, device: torch.device) -> None:
        """Continue the row of a checkpoint."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.micro_batches = state["micro_batches"]


class LogRows(L.Callback):
    """Logs a row every so many optimiser steps. A callback, because Lightning writes checkpoints before a module's own hook:

    a checkpoint without the row of its step would lose that row to a kill in between.
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
