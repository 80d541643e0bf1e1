"""Training of toy models of superposition: fresh features in every step (or a finite set of them), AdamW, every instance at once."""

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from crux.config.errors import UserError
from crux.config.files import write_tensors
from crux.config.schema import Optimizer, OptimizerName
from crux.toy.features import Purpose, generator
from crux.toy.superposition import Kind, SuperpositionModel, Weights, error, tensors
from crux.training.optimizer import build_optimizer


class ToyRecipe(NamedTuple):
    """How the weights move."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    """Decoupled (AdamW)."""
    warmup_steps: int
    min_lr_factor: float
    """Where the cosine ends, as a share of lr; 1: a constant rate."""
    max_steps: int
    log_every: int
    snapshots: tuple[int, ...]
    """Steps after which the weights are kept."""


def initial(kind: Kind, *, seeds: Int[Tensor, "stream"], n_settings: int, n_features: int, n_hidden: int) -> Weights:
    """Xavier-normal weights, std √(2 / (n_features + n_hidden)), and b = 0; an instance's are a function of its seed alone.

    (The paper's notebook takes the fan from the tensor with its instance axis, so that its scale changes with their number.)
    """
    std = (2 / (n_features + n_hidden)) ** 0.5
    draws = [generator(seed, Purpose.initial, 0) for seed in seeds.tolist()]

    def normal(*shape: int) -> Tensor:
        drawn = torch.stack([torch.from_numpy(rng.standard_normal(shape, dtype="float32")) for rng in draws])
        return (std * drawn[:, None]).repeat(1, n_settings, 1, 1)

    W = normal(n_hidden, n_features)
    W_out = normal(n_features, n_hidden) if kind is Kind.absolute_value else None
    return Weights(W, torch.zeros(len(seeds), n_settings, n_features), W_out)


class _Watch(L.Callback):
    """Rows of the history, snapshots of the weights, and the end of a run whose weights stopped being numbers.

    A callback, because Lightning writes checkpoints before a module's own hook.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SuperpositionModule)
        if trainer.global_step == 0:
            pl_module.keep(0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SuperpositionModule)
        step = trainer.global_step
        if step % pl_module.recipe.log_every == 0:
            row = {"train/loss": pl_module.read_loss(), "train/lr": trainer.optimizers[0].param_groups[0]["lr"]}
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
        pl_module.keep(step)


class SuperpositionModule(L.LightningModule):
    """Trains the instances of a toy model side by side: none feels the others.

    The loss is the notebook's: I-weighted squared error, mean over batch and features, summed over instances, so that an
    instance's gradient does not depend on how many there are. Rows of the history hold `train/loss`, the mean over instances of
    the error summed over features (what `error` returns) in the row's last step.

    Args:
        importance: I of each feature in the loss.
        snapshots: where the weights of the steps named in the recipe go, a safetensors file each; None: the recipe names none.
    """

    def __init__(
        self,
        model: SuperpositionModel,
        *,
        importance: Float[Tensor, "stream setting n_features"],
        recipe: ToyRecipe,
        snapshots: Path | None,
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.snapshots = model, recipe, snapshots
        self.importance: Tensor
        self.register_buffer("importance", importance, persistent=False)
        self._loss = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        lr, betas, eps, weight_decay, warmup_steps, min_lr_factor, max_steps, *_ = self.recipe
        options = Optimizer(
            OptimizerName.adamw, lr, list(betas), eps, weight_decay, warmup_steps, min_lr_factor, clip=float("inf")
        )
        return build_optimizer([{"params": self.model.parameters()}], options=options, max_steps=max_steps)

    def training_step(self, batch: Float[Tensor, "stream batch n_features"], batch_idx: int) -> Float[Tensor, ""]:
        errors = error(self.model, batch, self.importance)
        self._loss = errors.detach()
        return errors.sum() / batch.shape[-1]

    def configure_callbacks(self) -> list[L.Callback]:
        return [_Watch()]

    def read_loss(self) -> float:
        """The last step's error, mean over instances.

        Raises:
            UserError: where an instance's is no finite number.
        """
        if bad := int((~self._loss.isfinite()).sum()):
            raise UserError(
                f"the loss of {bad} of {self._loss.numel()} instances stopped being a finite number by step "
                f"{self.global_step}; try a lower optimizer.lr"
            )
        return float(self._loss.mean())

    def keep(self, step: int) -> None:
        """Writes the weights, where the recipe names the step."""
        if step in self.recipe.snapshots and self.snapshots is not None:
            self.snapshots.mkdir(parents=True, exist_ok=True)
            write_tensors(self.snapshots / f"{step}.safetensors", tensors(self.model.weights))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint with a non-finite number in it is never written."""
        self.read_loss()
