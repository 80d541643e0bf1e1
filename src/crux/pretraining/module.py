"""Pretraining of the packaged language model: next-token cross-entropy, Muon for the matrices in the blocks, AdamW for the rest."""

import lightning as L
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from crux.config.errors import UserError
from crux.pretraining.options import Pretrain, PretrainTrainer, Warmup
from crux.training.schedule import warmup_cosine


def build_gpt2(options: Pretrain, *, context: int) -> GPT2LMHeadModel:
    """Return a new GPT-2 without dropout, with the embedding tied to the unembedding."""
    config = GPT2Config(
        vocab_size=options.vocab_size, n_positions=context, n_embd=options.d_model, n_layer=options.n_layers,
        n_head=options.n_heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        use_cache=False, activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


class LanguageModel(L.LightningModule):
    """The Lightning module that trains a causal language model on batches of token windows, with one optimiser step per batch.

    The learning rate warms up, then follows a cosine that would reach zero at `options.horizon`; over the last
    `options.cooldown_steps` steps the cosine is multiplied with a line that falls from 1 to 0.
    """

    def __init__(
        self, model: GPT2LMHeadModel, *, options: Pretrain, optimizer: Warmup, trainer: PretrainTrainer
    ) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimisers step together
        self.model, self.options, self.shared, self.length = model, options, optimizer, trainer

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        if not hasattr(torch.optim, "Muon"):
            raise UserError(
                f"experiment=pretrain needs torch >= 2.9 (torch.optim.Muon); this is torch {torch.__version__}"
            )
        parameters = dict(self.model.named_parameters())
        matrices = [p for name, p in parameters.items() if p.ndim == 2 and ".h." in name]  # .h.: in a block
        rest = [p for name, p in parameters.items() if not (p.ndim == 2 and ".h." in name)]
        lr, decay = self.options.lr, self.options.weight_decay
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        optimizers: list[torch.optim.Optimizer] = [muon, adam]
        schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: self.lr_factor(step)) for o in optimizers]
        return optimizers, list(schedules)

    def lr_factor(self, step: int) -> float:
        """Return the learning rate at a step, as a fraction of its peak."""
        options, warmup = self.options, self.shared.warmup_steps
        cosine = warmup_cosine(step, warmup_steps=warmup, max_steps=options.horizon, min_lr_factor=0.0)
        return cosine * min(1.0, (self.length.max_steps - step) / options.cooldown_steps)

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
        nn.utils.clip_grad_norm_(self.model.parameters(), self.shared.clip)
        muon.optimizer.step()  # not through Lightning, which would count two steps per batch
        adam.step()
        for schedule in schedules:
            schedule.step()  # pyright: ignore[reportCallIssue]
        step = self.global_step  # not batch_idx, which starts at 0 when a run is resumed
        if step % self.length.log_every == 0:
            row = {"train/ce": loss.item(), "train/lr": self.options.lr * self.lr_factor(step - 1)}
            for logger in self.loggers:
                logger.log_metrics(row, step)
