"""Training of the modular-addition network by full-batch AdamW, optionally until all held-out pairs are right."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from crux.config.errors import UserError
from crux.config.schema import Adam, Trainer
from crux.degeneracy.networks.modular_addition import ModularAddition, Pairs
from crux.training.optimizer import build_optimizer


class RepeatedBatch(Sequence[Tensor]):
    """A data set that returns the same full batch in every step."""

    def __init__(self, tokens: Int[Tensor, "batch 3"], *, n_batches: int) -> None:
        self.tokens, self.n_batches = tokens, n_batches

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, i: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.tokens


def addition_loss(logits: Float[Tensor, "batch p"], tokens: Int[Tensor, "batch 3"]) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over pairs in nats.

    It is computed in float64: at losses below 1e-7, float32 gradients would consist of rounding errors.
    """
    return F.cross_entropy(logits.double(), Pairs.sums(tokens))


class _LogAndStop(L.Callback):
    """A callback that logs rows of the history, and ends training once every held-out pair is right.

    It is a callback because Lightning writes checkpoints before it calls the module's `on_train_batch_end`.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, AdditionModule)
        step = trainer.global_step
        if step % pl_module.trainer_options.log_every == 0 or step == pl_module.trainer_options.max_steps:
            row = pl_module.metrics_row()
            for logger in trainer.loggers:
                logger.log_metrics(row, step)
            trainer.should_stop = pl_module.stop_when_right and row["val/accuracy"] == 1


class AdditionModule(L.LightningModule):
    """The Lightning module that trains the network.

    Rows of the history contain `train/loss` (of the last step, before its update of the weights), `val/loss` and `val/accuracy`.
    """

    def __init__(
        self,
        network: ModularAddition,
        *,
        test: Int[Tensor, "test 3"],
        optimizer: Adam,
        trainer: Trainer,
        stop_when_right: bool,
    ) -> None:
        super().__init__()
        self.network, self.stop_when_right = network, stop_when_right
        self.optimizer_options, self.trainer_options = optimizer, trainer
        self.test: Tensor
        self.register_buffer("test", test, persistent=False)
        self._loss = torch.zeros(())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        groups = [{"params": self.network.parameters()}]
        steps = self.trainer_options.max_steps
        return build_optimizer(groups, options=self.optimizer_options, decoupled=True, max_steps=steps)

    def training_step(self, batch: Int[Tensor, "batch 3"], batch_idx: int) -> Float[Tensor, ""]:
        loss = addition_loss(self.network.logits(batch), batch)
        self._loss = loss.detach()
        return loss

    def configure_callbacks(self) -> list[L.Callback]:
        return [_LogAndStop()]

    def metrics_row(self) -> dict[str, float]:
        """Return the losses, and the share of the held-out pairs that are right."""
        held_out = evaluate_addition(self.network, self.test)
        return {"train/loss": self.read_loss(), "val/loss": held_out.loss, "val/accuracy": held_out.accuracy}

    def read_loss(self) -> float:
        """Return the last step's loss.

        Raises:
            UserError: if it is not finite.
        """
        if not bool(self._loss.isfinite()):
            raise UserError(
                f"the loss stopped being a finite number by step {self.global_step}; try a lower optimizer.lr"
            )
        return float(self._loss)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint if the loss is not finite."""
        self.read_loss()


class AdditionMetrics(NamedTuple):
    """Loss and accuracy of a network on some pairs."""

    loss: float
    """Mean cross-entropy, nats."""
    accuracy: float
    """Share of the pairs whose largest logit is that of the sum."""


@torch.no_grad()
def evaluate_addition(network: ModularAddition, tokens: Int[Tensor, "batch 3"]) -> AdditionMetrics:
    """Return the mean cross-entropy and the accuracy of a network on some pairs."""
    logits = network.logits(tokens)
    right = logits.argmax(-1) == Pairs.sums(tokens)
    return AdditionMetrics(float(addition_loss(logits, tokens)), float(right.double().mean()))
