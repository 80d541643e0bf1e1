"""Options of the pretraining of the packaged language model. This module does not import torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import BatchTrainer, ContextLength, Count, CountOrZero, Job, Precision, Rate, RateOrZero


@dataclass
class Pretrain:
    """The language model, its learning rate and its evaluation."""

    vocab_size: Count = MISSING
    """Vocabulary size of the byte-level tokenizer."""
    d_model: Count = MISSING
    """Width of the residual stream."""
    n_layers: Count = MISSING
    """Number of blocks."""
    n_heads: Count = MISSING
    """Number of attention heads per block."""
    lr: Rate = MISSING
    """Peak learning rate of Muon (scaled to AdamW's RMS) and AdamW."""
    weight_decay: RateOrZero = MISSING
    """Muon's decoupled weight decay."""
    horizon: Count = MISSING
    """Step at which the cosine schedule would reach zero."""
    cooldown_steps: Count = MISSING
    """Number of steps at the end over which the learning rate also falls linearly to 0."""
    stride: Count = MISSING
    """Number of tokens between the windows on which held-out bits per byte are measured."""

    def check_section(self, key: str) -> None:
        if self.d_model % self.n_heads:
            raise UserError(f"{key}.n_heads={self.n_heads}: must divide {key}.d_model={self.d_model}")


@dataclass
class Context:
    """The sequences of the language model."""

    context: ContextLength = MISSING
    """Tokens per sequence."""


@dataclass
class Warmup:
    """Options of both optimisers, Muon and AdamW."""

    warmup_steps: CountOrZero = MISSING
    """Number of steps of linear warm-up; the first step has a learning rate above 0."""
    clip: Rate = MISSING
    """Maximum norm of the gradient; larger gradients are scaled down."""


@dataclass
class PretrainTrainer(BatchTrainer):
    """Length, batches and precision of the pretraining."""

    precision: Precision = MISSING
    """Precision of the computation; auto: bfloat16 on CUDA, float32 on the CPU. The weights stay in float32."""


@dataclass
class PretrainJob(Job):
    """Trains the packaged language model on the packaged text."""

    cache: str | None = None
    """Folder for tokenised text; null: $CRUX_CACHE or ~/.cache/crux."""
    model: Context = MISSING
    optimizer: Warmup = MISSING
    trainer: PretrainTrainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    pretrain: Pretrain = MISSING

    runner: ClassVar[str] = "crux.pretraining.job.run"
    trains: ClassVar[bool] = True

    def check(self, given: Collection[str]) -> None:
        if self.pretrain.stride > self.model.context:
            raise UserError(
                f"pretrain.stride={self.pretrain.stride}: must be model.context={self.model.context} or less"
            )
        self._check_memory(given)
        if self.cache is not None:
            from crux.runs.checks import check_writable

            check_writable("cache", self.cache)

    def _check_memory(self, given: Collection[str]) -> None:
        """Check that the network, with gradients and the optimiser's moments, and a batch's activations fit into memory."""
        from crux.runs.memory import BYTES_PER_WEIGHT, Need, check_memory

        p = self.pretrain
        weights = 12 * p.n_layers * p.d_model**2 + p.vocab_size * p.d_model
        tokens = self.trainer.batch * self.model.context
        needs = [
            Need(
                "the network",
                weights * BYTES_PER_WEIGHT,
                ("pretrain.d_model", "pretrain.n_layers", "pretrain.vocab_size"),
            ),
            Need(
                "the activations of a batch",
                tokens * p.d_model * p.n_layers * 20,  # ten numbers per block and dimension, in bfloat16
                ("trainer.batch", "model.context"),
            ),
        ]
        check_memory(needs, accelerator=self.trainer.accelerator, given=given)

    def run_name(self) -> str:
        return "pretrain"

    def mlflow_params(self) -> dict[str, object]:
        return {
            "seed": self.seed,
            "vocab_size": self.pretrain.vocab_size,
            "d_model": self.pretrain.d_model,
            "n_layers": self.pretrain.n_layers,
            "n_heads": self.pretrain.n_heads,
            "lr": self.pretrain.lr,
            "max_steps": self.trainer.max_steps,
            "tokens": self.trainer.max_steps * self.trainer.batch * self.model.context,
        }


OPTIONS: Mapping[str, Mapping[str, type]] = {"job": {"pretraining": PretrainJob}}
