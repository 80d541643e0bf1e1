"""Training of the modular-addition network: AdamW on all training pairs in every step, until it is right on all the others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from crux.config.errors import UserError
from crux.config.schema import Optimizer, OptimizerName
from crux.degeneracy.networks.modular_addition import ModularAddition, Pairs
from crux.training.optimizer import build_optimizer


class AdditionRecipe(NamedTuple):
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
    """Steps between rows of the history, each with a judgement on the held-out pairs."""
    stop_when_right: bool
    """End with the first row that says that every held-out pair is right."""


class EveryPair(Sequence[Tensor]):
    """The same batch in every step."""

    def __init__(self, tokens: Int[Tensor, "batch 3"], *, n_batches: int) -> None:
        self.tokens, self.n_batches = tokens, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, i: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.tokens


def cross_entropy(logits: Float[Tensor, "batch p"], tokens: Int[Tensor, "batch 3"]) -> Float[Tensor, ""]:
    """Mean over pairs, nats, in float64: at losses below 1e-7, float32 gives gradients of rounding errors alone."""
    return F.cross_entropy(logits.double(), Pairs.sums(tokens))


class _Watch(L.Callback):
    """Rows of the history, and the end where every held-out pair is right, or the loss stopped being a number.

    A callback, because Lightning writes checkpoints before a module's own hook.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, AdditionModule)
        step = trainer.global_step
        if step % pl_module.recipe.log_every == 0 or step == pl_module.recipe.max_steps:
            row = pl_module.row()
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
            trainer.should_stop = pl_module.recipe.stop_when_right and row["val/accuracy"] == 1


class AdditionModule(L.LightningModule):
    """Rows hold `train/loss` (of the row's last step, before it moved the weights), `val/loss` and `val/accuracy`."""

    def __init__(self, network: ModularAddition, *, test: Int[Tensor, "test 3"], recipe: AdditionRecipe) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        self.test: Tensor
        self.register_buffer("test", test, persistent=False)
        self._loss = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        lr, betas, eps, weight_decay, warmup_steps, min_lr_factor, max_steps, *_ = self.recipe
        options = Optimizer(
            OptimizerName.adamw, lr, list(betas), eps, weight_decay, warmup_steps, min_lr_factor, clip=float("inf")
        )
        return build_optimizer([{"params": self.network.parameters()}], options=options, max_steps=max_steps)

    def training_step(self, batch: Int[Tensor, "batch 3"], batch_idx: int) -> Float[Tensor, ""]:
        loss = cross_entropy(self.network.logits(batch), batch)
        self._loss = loss.detach()
        return loss

    def configure_callbacks(self) -> list[L.Callback]:
        return [_Watch()]

    def row(self) -> dict[str, float]:
        """The losses, and how many of the held-out pairs are right."""
        found = judged(self.network, self.test)
        return {"train/loss": self.read_loss(), "val/loss": found.loss, "val/accuracy": found.accuracy}

    def read_loss(self) -> float:
        """The last step's.

        Raises:
            UserError: where it is no finite number.
        """
        if not bool(self._loss.isfinite()):
            raise UserError(
                f"the loss stopped being a finite number by step {self.global_step}; try a lower optimizer.lr"
            )
        return float(self._loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint with a non-finite number in it is never written."""
        self.read_loss()


class Judged(NamedTuple):
    loss: float
    accuracy: float


@torch.no_grad()
def judged(network: ModularAddition, tokens: Int[Tensor, "batch 3"]) -> Judged:
    """Mean cross-entropy, and the share of pairs whose largest logit is the sum's."""
    logits = network.logits(tokens)
    right = logits.argmax(-1) == Pairs.sums(tokens)
    return Judged(float(cross_entropy(logits, tokens)), float(right.double().mean()))
