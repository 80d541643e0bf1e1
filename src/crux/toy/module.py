"""Training of toy models of superposition: fresh features in every step (or a finite set of them), AdamW, every instance at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from crux.config.errors import UserError
from crux.config.files import write_tensors
from crux.config.schema import Adam
from crux.toy.features import Purpose, generator
from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights, error, tensors
from crux.training.optimizer import build_optimizer


def initial_weights(
    kind: Kind, *, seeds: Int[Tensor, "stream"], n_settings: int, n_features: int, n_hidden: int, scale: float
) -> Weights:
    """Return `scale` times Xavier-normal weights, of std √(2 / (n_features + n_hidden)), and b = 0.

    An instance's weights are a function of its seed alone.

    (The paper's notebook takes the fan from the tensor with its instance axis, so that its scale changes with their number.)
    """
    std = (2 / (n_features + n_hidden)) ** 0.5
    draws = [generator(seed, Purpose.initial, 0) for seed in seeds.tolist()]

    def normal(*shape: int) -> Tensor:
        drawn = torch.stack([torch.from_numpy(rng.standard_normal(shape, dtype="float32")) for rng in draws])
        return scale * (std * drawn[:, None]).repeat(1, n_settings, 1, 1)

    W = normal(n_hidden, n_features)
    W_out = normal(n_features, n_hidden) if kind is Kind.absolute_value else None
    return Weights(W, torch.zeros(len(seeds), n_settings, n_features), W_out)


class Watch(L.Callback):
    """Writes rows of the history and snapshots of the weights, and ends a run whose weights stopped being numbers.

    A callback, because Lightning writes checkpoints before a module's own hook.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SuperpositionModule)
        if trainer.global_step == 0:
            pl_module.write_snapshot(0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SuperpositionModule)
        step = trainer.global_step
        if step % pl_module.log_every == 0:
            row = {"train/loss": pl_module.read_loss(), "train/lr": trainer.optimizers[0].param_groups[0]["lr"]}
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
        pl_module.write_snapshot(step)


class SuperpositionModule(L.LightningModule):
    """Trains the instances of a toy model side by side: none feels the others.

    The loss is that of Elhage et al.'s notebook: I-weighted squared error, mean over batch and features, summed over instances, so that an
    instance's gradient does not depend on how many there are. Rows of the history hold `train/loss`, the mean over instances of
    the error summed over features (what `error` returns) in the row's last step.

    Args:
        importance: I of each feature in the loss.
        snapshots: steps after which the weights are written, with the safetensors file of each.
    """

    def __init__(
        self,
        model: SuperpositionModel,
        *,
        importance: Float[Tensor, "stream setting n_features"],
        optimizer: Adam,
        max_steps: int,
        log_every: int,
        snapshots: Mapping[int, Path],
    ) -> None:
        super().__init__()
        self.model, self.adam, self.snapshots = model, optimizer, snapshots
        self.max_steps, self.log_every = max_steps, log_every
        self.importance: Tensor
        self.register_buffer("importance", importance, persistent=False)
        self._loss = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = [{"params": self.model.parameters()}]
        return build_optimizer(groups, options=self.adam, decoupled=True, max_steps=self.max_steps)

    def training_step(self, batch: Float[Tensor, "stream batch n_features"], batch_idx: int) -> Float[Tensor, ""]:
        errors = error(self.model, batch, self.importance)
        self._loss = errors.detach()
        return errors.sum() / batch.shape[-1]

    def configure_callbacks(self) -> list[L.Callback]:
        return [Watch()]

    def read_loss(self) -> float:
        """Return the last step's error, mean over instances.

        Raises:
            UserError: if an instance's is no finite number.
        """
        if bad := int((~self._loss.isfinite()).sum()):
            raise UserError(
                f"the loss of {bad} of {self._loss.numel()} instances stopped being a finite number by step "
                f"{self.global_step}; try a lower optimizer.lr"
            )
        return float(self._loss.mean())

    def write_snapshot(self, step: int) -> None:
        """Write the weights, if a snapshot is wanted after this step."""
        if (path := self.snapshots.get(step)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors(self.model.weights))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint with a non-finite number in it."""
        self.read_loss()
