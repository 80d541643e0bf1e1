"""The options of the SAE architectures, one dataclass per architecture; `_target_` names its class. Torch-free."""

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import Count, Rate, RateOrZero

Share = Annotated[float, Ge(0), Le(1)]
"""A number from 0 to 1."""


class Init(Enum):
    """The initialisations of an SAE's weights; see `SAE`."""

    paper = "paper"
    tied = "tied"


class Labels(Enum):
    """The labels whose loss is differentiated: the next tokens of the text, tokens drawn from the clean predictions, or the top logits."""

    data = "data"
    sampled = "sampled"
    top_logit = "top_logit"


@dataclass
class Auxk:
    """AuxK: an auxiliary loss by which dead latents learn to reconstruct the residual (Gao et al. 2406.04093, appendix A.2)."""

    coefficient: RateOrZero = MISSING
    """Coefficient of the share of the residual's variance that the dead latents do not explain; 0: no AuxK."""
    k: Count | None = None
    """Dead latents per token; half of the activation's dimensions if not given."""
    dead_after: Annotated[int, Ge(0), Le(10**13)] = MISSING
    """A latent is dead if it has not fired for this many training tokens."""


@dataclass
class SaeOptions:
    """The options that every architecture has. A subclass adds its own keys and returns them as `arguments` for its class."""

    _target_: str = MISSING
    """Class of the architecture."""
    name: str = MISSING
    """Name of the architecture in tables and metadata; sae=... sets it."""
    ratio: Annotated[float, Gt(0), Le(10**6)] | None = MISSING
    """Number of latents per dimension of the activation (expansion factor); sae.n_latents takes precedence."""
    n_latents: Count | None = None
    """Number of latents; null: sae.ratio times the activation's dimensions."""
    init: Init = MISSING
    """Initial weights: those of Braun et al. (paper), or the encoder as the transposed decoder (tied)."""
    init_norm: Rate = MISSING
    """Initial norm of the encoder directions with sae.init=tied."""
    normalize_activations: bool = MISSING
    """Scale activations by one constant so that their mean norm is √d_model; saved weights include the constant."""
    bias_at_mean: bool = MISSING
    """Start the decoder bias at the mean activation instead of at 0."""
    subtract_b_dec: bool = MISSING
    """Encode x − b_dec instead of x; ignored in a transcoder."""
    sparsity_scale: RateOrZero = MISSING
    """If sparsity is not given, λ is loss.default_sparsity times this; 0 if k fixes L0."""
    auxk: Auxk = MISSING
    output_hook: str | None = None
    """For a transcoder: the later hook point whose activation is reconstructed from the one that is read; null: an autoencoder."""
    start_from: str | None = None
    """Folder of a saved SAE of this architecture to start from; null: new weights."""
    force: bool = MISSING
    """Start from the saved SAE although its metadata name another model, weight processing or hook point."""

    fixed_k: ClassVar[bool] = False
    """True if the architecture fixes L0 by k and therefore has no λ."""
    batch_wide: ClassVar[bool] = False
    """True if latents are selected over the whole batch. Then the loss cannot leave out any token of the batch."""
    list_key: ClassVar[str | None] = None
    """The top-level key (`sparsities` or `ks`) that lists values for many SAEs in a single job; None if there is none."""

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of the architecture's class besides those that all SAEs have."""
        return {}

    @property
    def gradient_labels(self) -> Literal["data", "sampled", "top_logit"] | None:
        """The labels whose loss gradient the selection of latents uses; None if it uses no gradient."""
        return None

    def count_latents(self, d_model: int) -> int:
        """Return the number of latents for activations of this width."""
        return self.n_latents if self.n_latents is not None else int((self.ratio or 0) * d_model)

    def check_section(self, key: str) -> None:
        if self.n_latents is None and self.ratio is None:
            raise UserError(f"{key}.ratio and {key}.n_latents are both null: an SAE needs one of them")


@dataclass
class Relu(SaeOptions):
    """ReLU with an L1 penalty (Braun et al. 2405.12241)."""

    list_key: ClassVar[str | None] = "sparsities"


@dataclass
class PAnneal(SaeOptions):
    """ReLU with a penalty that changes from L1 towards L0 (Karvonen et al. 2408.00113)."""

    p_end: Annotated[float, Gt(0), Lt(1)] = MISSING
    """The exponent p of the penalty Σ c^p at the end; it begins at 1."""
    p_start: Share = MISSING
    """Share of the steps after which p begins to fall."""
    p_stop: Share = MISSING
    """Share of the steps after which p stays constant."""
    p_updates: Count = MISSING
    """Number of equal steps in which p falls."""

    @property
    def arguments(self) -> dict[str, object]:
        return {"p_end": self.p_end, "p_start": self.p_start, "p_stop": self.p_stop, "p_updates": self.p_updates}

    def check_section(self, key: str) -> None:
        super().check_section(key)
        if self.p_start >= self.p_stop:
            raise UserError(f"{key}.p_start={self.p_start}: must be less than {key}.p_stop={self.p_stop}")


@dataclass
class JumpRelu(SaeOptions):
    """JumpReLU with straight-through estimators and an L0 penalty (Rajamanoharan et al. 2407.14435)."""

    threshold: Rate = MISSING
    """Initial threshold, in units of the (normalised) activation."""
    bandwidth: Rate = MISSING
    """Width of the kernel of the straight-through estimators, in the same units."""
    threshold_rate: Rate = MISSING
    """Learning rate of log θ, as a multiple of optimizer.lr."""

    @property
    def arguments(self) -> dict[str, object]:
        return {"threshold": self.threshold, "bandwidth": self.bandwidth, "threshold_rate": self.threshold_rate}


@dataclass
class Gated(SaeOptions):
    """Gated: one half of the encoder decides which latents fire, the other half how strongly (Rajamanoharan et al. 2404.16014)."""


@dataclass
class TopK(SaeOptions):
    """TopK: keeps the k largest pre-activations of each token (Gao et al. 2406.04093)."""

    k: Count = MISSING
    """Number of latents that fire per token; on average over the batch for batch_topk and matryoshka."""

    fixed_k: ClassVar[bool] = True
    list_key: ClassVar[str | None] = "ks"

    @property
    def arguments(self) -> dict[str, object]:
        return {"k": self.k}


@dataclass
class BatchTopK(TopK):
    """BatchTopK: keeps the k · tokens largest pre-activations of a batch (Bussmann et al. 2412.06410)."""

    batch_wide: ClassVar[bool] = True
    list_key: ClassVar[str | None] = None


@dataclass
class Matryoshka(BatchTopK):
    """Matryoshka: BatchTopK with nested prefixes of the dictionary that each reconstruct (Bussmann et al. 2503.17547)."""

    prefixes: list[Annotated[float, Gt(0), Lt(1)]] = MISSING
    """Sizes of the prefixes, as shares of the dictionary; the whole dictionary reconstructs too."""
    prefix_coefficient: RateOrZero = MISSING
    """Coefficient of each prefix's MSE."""

    @property
    def arguments(self) -> dict[str, object]:
        return super().arguments | {"prefixes": self.prefixes, "prefix_coefficient": self.prefix_coefficient}

    def check_section(self, key: str) -> None:
        super().check_section(key)
        if not all(a < b for a, b in pairwise([0.0, *self.prefixes, 1.0])):
            raise UserError(
                f"{key}.prefixes={self.prefixes}: must be increasing shares of the dictionary, between 0 and 1"
            )


@dataclass
class GradientTopK(TopK):
    """g-SAE: TopK with a selection of latents that also uses a gradient (Olmo et al. 2411.10397)."""

    beta: RateOrZero = MISSING
    """Weight of the gradient in the selection of latents, in units of its mean effect."""
    gradient_target: Labels = MISSING
    """The labels whose loss is differentiated; only `data` needs the next token of the text."""

    list_key: ClassVar[str | None] = None

    @property
    def arguments(self) -> dict[str, object]:
        return super().arguments | {"beta": self.beta}

    @property
    def gradient_labels(self) -> Literal["data", "sampled", "top_logit"] | None:
        return self.gradient_target.value


OPTIONS = {
    "sae": {
        "relu": Relu,
        "p_anneal": PAnneal,
        "jumprelu": JumpRelu,
        "gated": Gated,
        "topk": TopK,
        "batch_topk": BatchTopK,
        "matryoshka": Matryoshka,
        "gradient_topk": GradientTopK,
    }
}
