"""Copies of a network's weights, taken while Lightning trains it."""

from collections.abc import Collection
from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn


class WeightCopies(L.Callback):
    """Copies the weights before the first step and after some steps; a checkpoint holds the copies made so far."""

    def __init__(self, network: nn.Module, *, steps: Collection[int]) -> None:
        self.network, self.steps = network, frozenset(steps)
        self.by_step = {0: copy_weights(network)}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in self.steps:
            self.by_step[trainer.global_step] = copy_weights(self.network)

    def state_dict(self) -> dict[str, Any]:
        return {"by_step": self.by_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.by_step = state_dict["by_step"]


def copy_weights(network: nn.Module) -> dict[str, Float[Tensor, "..."]]:
    """Return a copy of the weights as they are now by name, float64, on the CPU."""
    return {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in network.named_parameters()}
