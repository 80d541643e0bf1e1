"""What training any SAE shares: optimiser, schedule, clipping, counters, logging, and the watch for non-finite numbers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning as L
import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from crux.saes.sae import SAE, Codes
from crux.training.schedule import warmup_cosine


class NonFiniteLossError(ValueError):
    """The loss or its gradient stopped being a number: the recipe is too bold for the data."""


class Recipe(NamedTuple):
    """How the weights move, for how long, and how often that is told."""

    optimizer: str
    """`adam` or `adamw`."""
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    min_lr_factor: float
    clip: float
    max_steps: int
    log_every: int


class _Rows(L.Callback):
    """Logs a row every `log_every` steps. A callback, because Lightning writes checkpoints before a module's own hook:

    a checkpoint without the row of its step would lose that row to a kill in between.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SAEModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.global_step % pl_module.recipe.log_every:
            return
        row = {f"train/{name}": value for name, value in pl_module.read_sums().items()}
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)


class SAEModule(L.LightningModule):
    """Trains one SAE; a subclass says what a batch is and what the loss.

    Nothing in a step waits for the device: terms are summed on it and read every `log_every` steps.

    Args:
        sparsity: λ, the coefficient of the SAE's penalty.
        skip_positions, max_norm: tokens that the loss leaves out, by position in the sequence or by ‖x‖.
    """

    last_fired: Tensor
    tokens_seen: Tensor
    first_bad_step: Tensor
    grad_norm: Tensor

    def __init__(self, sae: SAE, *, recipe: Recipe, sparsity: float, max_norm: float | None) -> None:
        super().__init__()
        self.sae, self.recipe, self.sparsity, self.max_norm = sae, recipe, sparsity, max_norm
        self.register_buffer("last_fired", torch.full((sae.n_latents,), -1, dtype=torch.long))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.long))
        self.register_buffer("first_bad_step", torch.full((), -1, dtype=torch.long))
        self.register_buffer("grad_norm", torch.zeros(()), persistent=False)
        self._sums: dict[str, Tensor] = {}
        self._micro_batches = 0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        optimizer = make(
            self.sae.parameters(),
            lr=recipe.lr,
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=True,
        )

        def share(step: int) -> float:
            return warmup_cosine(
                step, warmup_steps=recipe.warmup_steps, max_steps=recipe.max_steps, min_lr_factor=recipe.min_lr_factor
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.grad_norm = nn.utils.clip_grad_norm_(self.sae.parameters(), self.recipe.clip)
        self._watch(self.grad_norm)

    def tokens_in_loss(
        self, x: Float[Tensor, "tokens d"], kept: Bool[Tensor, "tokens"] | None
    ) -> Float[Tensor, "tokens"] | None:
        """1 for a token that the loss counts, 0 for one that it leaves out; None where it counts all."""
        if self.max_norm is not None:
            short = x.norm(dim=-1) <= self.max_norm
            kept = short if kept is None else kept & short
        return None if kept is None else kept.float()

    def told(self, loss: Tensor, codes: Codes, terms: Mapping[str, Tensor]) -> Tensor:
        """Counts what the step showed, on the device; hands the loss on."""
        with torch.no_grad():
            fires = codes.c != 0
            self.tokens_seen += len(fires)
            self.last_fired = torch.where(fires.any(0), self.tokens_seen, self.last_fired)
            self._watch(loss)
            for name, value in {"loss": loss, **terms, "l0": fires.sum() / len(fires)}.items():
                self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._micro_batches += 1
        return loss

    def _watch(self, value: Tensor) -> None:
        bad = ~torch.isfinite(value) & (self.first_bad_step < 0)
        step = self.global_step + 1  # as the history counts: the row of step n is written after n steps
        self.first_bad_step = torch.where(bad, step, self.first_bad_step)

    def configure_callbacks(self) -> list[L.Callback]:
        return [_Rows()]

    def read_sums(self) -> dict[str, float]:
        """Means since the last row: one transfer from the device."""
        names = [*self._sums, "grad_norm"]
        values = [*(s / self._micro_batches for s in self._sums.values()), self.grad_norm]
        *row, first_bad = torch.stack([*(v.double() for v in values), self.first_bad_step.double()]).tolist()
        self._raise_if_bad(int(first_bad))
        self._sums, self._micro_batches = {}, 0
        return dict(zip(names, row, strict=True)) | {"lr": self.trainer.optimizers[0].param_groups[0]["lr"]}

    def _raise_if_bad(self, first_bad: int) -> None:
        if first_bad >= 0:
            raise NonFiniteLossError(
                f"the loss or its gradient stopped being a finite number at step {first_bad}; try a lower optimizer.lr, a lower "
                "optimizer.clip or loss.max_norm (the last good checkpoint is kept)"
            )

    def on_train_end(self) -> None:
        """Steps since the last row may have gone wrong too."""
        self._raise_if_bad(int(self.first_bad_step))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint with a non-finite number in it is never written; what the next row sums up goes with it."""
        self._raise_if_bad(int(self.first_bad_step))
        checkpoint["row"] = {"sums": self._sums, "micro_batches": self._micro_batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        row = checkpoint["row"]
        self._sums = {name: value.to(self.device) for name, value in row["sums"].items()}
        self._micro_batches = row["micro_batches"]

    def alive(self, window: int) -> tuple[int, int]:
        """How many latents fired within the last N training tokens, and N (`window`, or all tokens where fewer)."""
        seen = int(self.tokens_seen)
        n = min(window, seen)
        return int(((self.last_fired >= 0) & (seen - self.last_fired < n)).sum()), n
