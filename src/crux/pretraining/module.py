"""Pretraining of the packaged language model: next-token cross-entropy, Muon on matrices and AdamW on the rest."""

from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from crux.config.errors import UserError
from crux.training.schedule import warmup_cosine


class Rates(NamedTuple):
    lr: float
    """Peak learning rate, for both optimisers (Muon's update is scaled to AdamW's RMS)."""
    weight_decay: float
    warmup_steps: int
    horizon: int
    """Step at which the cosine would reach zero."""
    max_steps: int
    """Step at which training ends."""
    cooldown_steps: int
    """Over so many last steps the cosine is multiplied with a line that falls from 1 to 0."""


def gpt2(*, vocab_size: int, context: int, d_model: int, n_layers: int, n_heads: int) -> GPT2LMHeadModel:
    """A fresh GPT-2 without dropout, embedding and unembedding tied."""
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=context, n_embd=d_model, n_layer=n_layers, n_head=n_heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, use_cache=False,
        activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class LanguageModel(L.LightningModule):
    """Trains a causal language model on batches of token windows; one optimiser step a batch."""

    def __init__(self, model: GPT2LMHeadModel, *, rates: Rates, clip: float, log_every: int) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimisers step together
        self.model, self.rates, self.clip, self.log_every = model, rates, clip, log_every

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"experiment=pretrain needs torch >= 2.9 (torch.optim.Muon); this is torch {torch.__version__}"
            )
        blocks = [p for n, p in self.model.named_parameters() if p.ndim == 2 and ".h." in n]
        rest = [p for n, p in self.model.named_parameters() if not (p.ndim == 2 and ".h." in n)]
        lr, decay = self.rates.lr, self.rates.weight_decay
        muon = torch.optim.Muon(blocks, lr=lr, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        optimizers: list[torch.optim.Optimizer] = [muon, adam]
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, self.share) for o in optimizers]
        return optimizers, list(schedules)

    def share(self, step: int) -> float:
        """Of the peak rate, at that step."""
        rates = self.rates
        cosine = warmup_cosine(step, warmup_steps=rates.warmup_steps, max_steps=rates.horizon, min_lr_factor=0.0)
        return cosine * min(1.0, (rates.max_steps - step) / rates.cooldown_steps)

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        hidden = self.model.transformer(batch[:, :-1]).last_hidden_state
        logits = self.model.lm_head(hidden)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        optimizers, schedules = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizers, list)
        assert isinstance(schedules, list)
        muon, adam = optimizers
        self.model.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        muon.optimizer.step()  # past Lightning, which would count two steps a batch
        adam.step()
        for schedule in schedules:
            schedule.step()  # pyright: ignore[reportCallIssue]
        if (batch_idx + 1) % self.log_every == 0:
            row = {"train/ce": loss.item(), "train/lr": self.rates.lr * self.share(batch_idx)}
            for logger in self.loggers:
                logger.log_metrics(row, batch_idx + 1)
