"""The options of each loss. Torch-free, so that the command line can check them quickly."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import CountOrZero, Rate, RateOrZero


@dataclass
class LossOptions:
    """The options that every loss has. The options of a new loss derive from this class."""

    _target_: str = MISSING
    """The class of the loss; it is constructed from these options."""
    name: str = MISSING
    """Name of the loss in tables and metadata; loss=... sets it."""
    default_sparsity: RateOrZero = MISSING
    """λ if sparsity is not given, before it is multiplied by sae.sparsity_scale; tuned on model=tiny."""
    skip_positions: list[CountOrZero] = MISSING
    """Positions in the sequence that the loss leaves out; [0] leaves out the first, where many models have a massive activation."""
    max_norm: Rate | None = None
    """Leave tokens out of the loss whose activation has a larger norm than this, in activation units; null: leave out none."""

    coefficients: ClassVar[tuple[str, ...]] = ()
    """The keys of the coefficients of the loss's terms, of which at least one must not be 0."""
    real_outputs: ClassVar[bool] = False
    """True if the loss can also be used for networks whose outputs are real numbers. There the MSE of the outputs replaces the KL."""

    @property
    def token_share(self) -> float:
        """Share of the steps whose batches are token sequences. They come last; the steps before use shuffled activations."""
        return 1.0

    @property
    def leaves_tokens_out(self) -> bool:
        """True if the loss leaves out some tokens of a batch. Batches of shuffled activations do not contain skipped positions."""
        return self.max_norm is not None or (self.token_share > 0 and len(self.skip_positions) > 0)

    @property
    def numeric_options(self) -> dict[str, float]:
        """The numeric options that not every loss has, by their keys. They are parameters in MLflow, by which runs are compared."""
        shared = {field.name for field in fields(LossOptions)}
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in shared}
        return {name: value for name, value in values.items() if isinstance(value, int | float)}

    def later_hooks(self, available: Sequence[str], *, written: str) -> list[str]:
        """Return the later hook points whose activations the loss compares.

        Args:
            available: the residuals after `written` at which there is no SAE, in the order of the network.
            written: the hook point that the first SAE writes.

        Raises:
            UserError: if a requested hook point is not available, or if there is none to compare.
        """
        return []

    def check_section(self, key: str) -> None:
        """Raise a UserError if these options contradict each other; `key` is the name of their section in the configuration."""
        if self.coefficients and not any(getattr(self, name) for name in self.coefficients):
            raise UserError(f"{key}={self.name}: all of its coefficients are 0, so there is nothing to minimise")


@dataclass
class Local(LossOptions):
    """SAE_local: reconstruction · MSE + λ · penalty (Braun et al. 2405.12241, §2.1)."""

    reconstruction: RateOrZero = MISSING
    """Coefficient of the MSE at the hook point itself; 0: no such term."""

    coefficients: ClassVar[tuple[str, ...]] = ("reconstruction",)
    real_outputs: ClassVar[bool] = True

    @property
    def token_share(self) -> float:
        return 0.0


@dataclass
class E2E(LossOptions):
    """SAE_e2e: kl · KL + reconstruction · MSE + λ · penalty (Braun et al. 2405.12241, §2.2)."""

    kl: RateOrZero = MISSING
    """Coefficient of KL(clean ‖ spliced), which is in nats per token."""
    reconstruction: RateOrZero = MISSING
    """Coefficient of the MSE at the hook point itself; 0: no such term."""

    coefficients: ClassVar[tuple[str, ...]] = ("kl", "reconstruction")
    real_outputs: ClassVar[bool] = True


@dataclass
class E2EDownstream(E2E):
    """SAE_e2e+ds: kl · KL + downstream · mean later MSE + reconstruction · MSE + λ · penalty (Braun et al. 2405.12241, §2.3)."""

    downstream: RateOrZero = MISSING
    """Coefficient of the mean of the MSEs at the later hook points, loss.downstream_hooks."""
    downstream_hooks: list[str] | None = None
    """Later hook points whose activations are compared; null: every later hook_resid_pre and the last hook_resid_post."""

    coefficients: ClassVar[tuple[str, ...]] = ("kl", "downstream", "reconstruction")
    real_outputs: ClassVar[bool] = False

    def later_hooks(self, available: Sequence[str], *, written: str) -> list[str]:
        if self.downstream == 0:
            return []
        hooks = list(available) if self.downstream_hooks is None else self.downstream_hooks
        for hook in hooks:
            if hook not in available:
                raise UserError(
                    f"loss.downstream_hooks: {hook} is not a residual after {written}; allowed are "
                    f"{', '.join(available) or 'none'}"
                )
        if not hooks:
            raise UserError(
                f"loss={self.name}: no later residual is left after {written} to compare; allowed are "
                "earlier hook points, or loss=local and loss=e2e"
            )
        return hooks


@dataclass
class Fisher(Local):
    """Fisher: reconstruction · MSE + fisher · Fisher surrogate of the KL + λ · penalty."""

    fisher: RateOrZero = MISSING
    """Coefficient of the Fisher surrogate of the KL, ½ (Σ_t g_t·δ_t)² / T in nats per token; g is the gradient of the loss for a sampled
    label, δ the SAE's error."""
    block_diagonal: bool = MISSING
    """Drop the surrogate's cross terms between positions, so that it is ½ (g_t·δ_t)²."""

    coefficients: ClassVar[tuple[str, ...]] = ("reconstruction", "fisher")
    real_outputs: ClassVar[bool] = False

    @property
    def token_share(self) -> float:
        return 1.0

    def check_section(self, key: str) -> None:
        super().check_section(key)
        if self.block_diagonal and self.fisher == 0:
            raise UserError(f"{key}.block_diagonal changes the Fisher term: {key}.fisher must be more than 0")


@dataclass
class KLFinetune(Local):
    """SAE_local, then ½ (MSE + α · KL) + λ · penalty with α = (MSE / KL).detach() (Karvonen 2503.17272)."""

    finetune_share: Annotated[float, Ge(0), Le(1)] = MISSING
    """Share of the steps, at the end, that train on the KL as well as on the MSE."""

    real_outputs: ClassVar[bool] = False

    @property
    def token_share(self) -> float:
        return self.finetune_share

    def check_section(self, key: str) -> None:
        if self.finetune_share > 0 and self.reconstruction == 0:
            raise UserError(f"{key}.finetune_share scales the KL to the MSE: {key}.reconstruction must be more than 0")
        super().check_section(key)


OPTIONS = {
    "loss": {"local": Local, "e2e": E2E, "e2e_ds": E2EDownstream, "fisher": Fisher, "kl_finetune": KLFinetune},
}
