"""Train toy models of superposition: fresh features in every step (or a finite set of them), AdamW, all instances at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from crux.config.checked_tensors import write_checked_tensors
from crux.config.errors import UserError
from crux.config.schema import Adam
from crux.toy.features import Purpose, numpy_generator
from crux.toy.options import Kind
from crux.toy.superposition import SuperpositionModel, Weights, sampled_loss, weights_to_tensors
from crux.training.optimizer import build_optimizer


def initial_weights(
    kind: Kind, *, seeds: Int[Tensor, "stream"], n_settings: int, n_features: int, n_hidden: int, scale: float
) -> Weights:
    """Return `scale` times Xavier-normal weights, with std √(2 / (n_features + n_hidden)), and b = 0.

    The weights of an instance depend only on its seed. (Elhage et al.'s notebook computes the fan from a tensor with an instance axis, so
    that its scale depends on the number of instances.)
    """
    std = (2 / (n_features + n_hidden)) ** 0.5
    generators = [numpy_generator(seed, Purpose.initial, 0) for seed in seeds.tolist()]

    def normal(*shape: int) -> Tensor:
        noise = torch.stack([torch.from_numpy(rng.standard_normal(shape, dtype="float32")) for rng in generators])
        return scale * (std * noise[:, None]).repeat(1, n_settings, 1, 1)

    W = normal(n_hidden, n_features)
    W_out = normal(n_features, n_hidden) if kind is Kind.absolute_value else None
    return Weights(W, torch.zeros(len(seeds), n_settings, n_features), W_out)


class HistoryCallback(L.Callback):
    """A callback that writes history rows and snapshots of the weights, and stops a run whose loss is not finite.

    It is a callback because Lightning writes checkpoints before it calls the module's own hook.
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
    """The training of all instances of a toy model at once; the instances do not influence each other.

    The loss is that of Elhage et al.'s notebook: importance-weighted squared error, mean over batch and features, summed over
    instances, so that the gradient of an instance does not depend on the number of instances. The history has `train/loss`, the
    loss summed over features (as returned by `sampled_loss`) in the row's step, mean over instances.

    Args:
        importance: I of each feature in the loss.
        snapshots: safetensors file of each snapshot, by the step after which it is written.
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
        errors = sampled_loss(self.model, batch, self.importance)
        self._loss = errors.detach()
        return errors.sum() / batch.shape[-1]

    def configure_callbacks(self) -> list[L.Callback]:
        return [HistoryCallback()]

    def read_loss(self) -> float:
        """Return the loss of the last step, mean over instances.

        Raises:
            UserError: if the loss of an instance is not finite.
        """
        if bad := int((~self._loss.isfinite()).sum()):
            raise UserError(
                f"the loss of {bad} of {self._loss.numel()} instances stopped being a finite number by step "
                f"{self.global_step}; try a lower optimizer.lr"
            )
        return float(self._loss.mean())

    def write_snapshot(self, step: int) -> None:
        """Write the weights if a snapshot is due after this step."""
        if (path := self.snapshots.get(step)) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_checked_tensors(path, weights_to_tensors(self.model.weights))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint if a loss is not finite."""
        self.read_loss()
