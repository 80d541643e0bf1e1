"""The options of the SAE architectures, one dataclass each; the classes themselves are named by `_target_`. Torch-free."""

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import Count, Rate

Share = Annotated[float, Ge(0), Le(1)]
"""From 0 to 1."""


class Init(Enum):
    """An SAE's initial weights."""

    paper = "paper"
    tied = "tied"


class Labels(Enum):
    """Whose loss a gradient is of: the text's next token, one drawn from the clean prediction, or the top logit."""

    data = "data"
    sampled = "sampled"
    top_logit = "top_logit"


@dataclass
class Auxk:
    """AuxK: dead latents reconstruct what the others leave (Gao et al. 2406.04093)."""

    coefficient: Annotated[float, Ge(0)] = MISSING
    """Weight of the share of the residual's variance that they leave; 0: no such term."""
    k: Count | None = None
    """Dead latents per token; half of the activation's dimensions if not given."""
    dead_after: Annotated[int, Ge(0)] = MISSING
    """Training tokens without firing that make a latent dead."""


@dataclass
class SaeOptions:
    """What every architecture has. Subclasses add their own keys and hand them to their class as `arguments`."""

    _target_: str = MISSING
    """The architecture's class."""
    name: str = MISSING
    """Its name in tables and metadata."""
    ratio: Rate | None = MISSING
    """Latents per dimension of the activation; or give n_latents."""
    n_latents: Count | None = None
    """Latents; takes precedence over ratio."""
    init: Init = MISSING
    """Initial weights: the paper's, or the encoder as the decoder transposed."""
    init_norm: Rate = MISSING
    """Norm of the encoder's directions under init=tied."""
    normalize_activations: bool = MISSING
    """Scale activations by one constant so that their mean norm is √d_model; folded into the weights on saving."""
    bias_at_mean: bool = MISSING
    """Start the decoder bias at the mean activation."""
    subtract_b_dec: bool = MISSING
    """Encode x − b_dec; never in a transcoder."""
    sparsity_scale: Annotated[float, Ge(0)] = MISSING
    """If `sparsity` is not given, λ is the loss's default times this; 0 with a fixed k."""
    auxk: Auxk = MISSING
    output_hook: str | None = None
    """A later hook point, for a transcoder: read at the hook point, reconstruct this one."""
    start_from: str | None = None
    """Folder of a saved SAE of this architecture to start from."""

    fixed_k: ClassVar[bool] = False
    """Whether k fixes L0, so that there is no λ."""
    batch_wide: ClassVar[bool] = False
    """Whether latents are chosen over the whole batch, so that no token of it can be left out of the loss."""
    list_key: ClassVar[str | None] = None
    """The top-level key whose values make one SAE each in a single job; None if the architecture has none."""

    @property
    def arguments(self) -> dict[str, object]:
        """The arguments of the class beyond those of every SAE."""
        return {}

    @property
    def gradient_labels(self) -> Literal["data", "sampled", "top_logit"] | None:
        """Whose loss the gradient is of that the choice of latents looks at; None: it looks at none."""
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
    """ReLU whose penalty goes from L1 towards L0 (Karvonen et al. 2408.00113)."""

    p_end: Annotated[float, Gt(0), Lt(1)] = MISSING
    """The power of the penalty Σ c^p at the end; it begins at 1."""
    p_start: Share = MISSING
    """Share of the steps after which p begins to fall."""
    p_stop: Share = MISSING
    """Share of the steps after which p stays."""
    p_updates: Count = MISSING
    """Equal steps in which it falls."""

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
    """First threshold, in units of the (normalised) activation."""
    bandwidth: Rate = MISSING
    """Width of the straight-through estimators' kernel, in the same units."""
    threshold_rate: Rate = MISSING
    """Learning rate of log θ, as a multiple of optimizer.lr."""

    @property
    def arguments(self) -> dict[str, object]:
        return {"threshold": self.threshold, "bandwidth": self.bandwidth, "threshold_rate": self.threshold_rate}


@dataclass
class Gated(SaeOptions):
    """One half of the encoder decides which latents fire, the other how much (Rajamanoharan et al. 2404.16014)."""


@dataclass
class TopK(SaeOptions):
    """The k largest pre-activations of each token (Gao et al. 2406.04093)."""

    k: Count = MISSING
    """Latents per token (BatchTopK and Matryoshka: on average)."""

    fixed_k: ClassVar[bool] = True
    list_key: ClassVar[str | None] = "ks"

    @property
    def arguments(self) -> dict[str, object]:
        return {"k": self.k}


@dataclass
class BatchTopK(TopK):
    """The k · tokens largest pre-activations of a batch (Bussmann et al. 2412.06410)."""

    batch_wide: ClassVar[bool] = True
    list_key: ClassVar[str | None] = None


@dataclass
class Matryoshka(BatchTopK):
    """Nested prefixes of the dictionary each reconstruct (Bussmann et al. 2503.17547)."""

    prefixes: list[float] = MISSING
    """Shares of the dictionary that each reconstruct by themselves, besides the whole."""
    prefix_coefficient: Annotated[float, Ge(0)] = MISSING
    """Weight of each prefix's MSE."""

    @property
    def arguments(self) -> dict[str, object]:
        return super().arguments | {"prefixes": self.prefixes, "prefix_coefficient": self.prefix_coefficient}

    def check_section(self, key: str) -> None:
        super().check_section(key)
        if not all(a < b for a, b in pairwise([0.0, *self.prefixes, 1.0])):
            raise UserError(f"{key}.prefixes={self.prefixes}: must be rising shares of the dictionary, between 0 and 1")


@dataclass
class GradientTopK(TopK):
    """g-SAE: TopK whose choice of latents looks at gradients (Olmo et al. 2411.10397)."""

    beta: Annotated[float, Ge(0)] = MISSING
    """Weight of the gradient in the choice of latents, in units of its mean effect."""
    gradient_target: Labels = MISSING
    """Whose loss the gradient is of; only `data` needs the text's next token."""

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
