"""What every sparse autoencoder is: codes, a unit-norm dictionary, a sparsity penalty.

A new architecture is one file beside this one: a subclass that says how it encodes and what it is penalised for.
"""

import copy
import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from crux.config.errors import UserError

Init = Literal["paper", "tied"]


class Codes(NamedTuple):
    """What an encoder returns."""

    c: Float[Tensor, "tokens n_latents"]
    """The sparse latents; zero where a latent does not fire."""
    pre: Float[Tensor, "tokens n_latents"]
    """What decides whether a latent fires, before any threshold or choice; AuxK ranks dead latents by it."""
    observed: Float[Tensor, ""] | None = None
    """What `SAE.observe` keeps a running mean of, where an architecture has such a number."""


class ParameterGroup(TypedDict):
    """Parameters that move alike, in torch's form."""

    params: list[nn.Parameter]
    lr: NotRequired[float]
    weight_decay: NotRequired[float]


class BaseArguments(TypedDict):
    """What every architecture is made with, as `SAE` tells."""

    d_model: int
    n_latents: int
    init: Init
    init_norm: float
    subtract_b_dec: bool
    generator: torch.Generator
    d_out: NotRequired[int | None]


class SAE(nn.Module, ABC):
    """x ↦ x̂ = (c D + b_dec) / s_out with c = encode(s_in · x) and D the unit-norm dictionary.

    The decoder is normalised in the forward pass, so that gradients flow through the norm (Braun et al., the authors' code):
    the stored `W_dec` need not have unit norm, `dictionary()` has. s_in and s_out (`input_scale`, `output_scale`) are 1
    unless activations are normalised. A transcoder reads and writes different activations, of `d_model` and `d_out`
    dimensions; every other SAE reconstructs what it reads.

    Args:
        init: `paper`: encoder and its bias U(±1/√d_model), decoder orthogonal (a tight frame), decoder bias U(±1/√n_latents),
            encoder and decoder independent; half of all latents fire at first (Braun et al.). `tied`: encoder = decoder
            transposed, random directions of norm `init_norm`, biases zero (Conerly et al., "Update on how we train SAEs", 2024).
        init_norm: norm of each encoder direction under `tied`.
        subtract_b_dec: whether the encoder reads x − b_dec.
        generator: source of the initial weights.
        d_out: dimensions of what is written; None: those of what is read.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    input_scale: Tensor
    output_scale: Tensor

    BATCH_WIDE: ClassVar[bool] = False
    """Whether latents are chosen over the whole batch in training, so that no token of it can be left out of the loss."""
    RUNNING_MEANS: ClassVar[tuple[str, ...]] = ()
    """Buffers that `observe` keeps running means in: linear in each step's mean over tokens, so that means of them are means too."""

    def __init__(
        self,
        *,
        d_model: int,
        n_latents: int,
        init: Init,
        init_norm: float,
        subtract_b_dec: bool,
        generator: torch.Generator,
        d_out: int | None = None,
    ) -> None:
        super().__init__()
        if n_latents < 1:
            raise UserError(f"an SAE needs at least one latent, not {n_latents}")
        self.d_model, self.n_latents, self.d_out = d_model, n_latents, d_model if d_out is None else d_out
        self.subtract_b_dec = subtract_b_dec
        assert not (subtract_b_dec and self.d_out != d_model), "a transcoder's b_dec is no activation that it reads"
        self.W_enc = nn.Parameter(torch.empty(d_model, n_latents))
        self.b_enc = nn.Parameter(torch.empty(n_latents))
        self.W_dec = nn.Parameter(torch.empty(n_latents, self.d_out))
        self.b_dec = nn.Parameter(torch.empty(self.d_out))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("output_scale", torch.ones(()))
        self._initialise(init, init_norm, generator)

    @torch.no_grad()
    def _initialise(self, init: Init, init_norm: float, generator: torch.Generator) -> None:
        match init:
            case "paper":
                for parameter in (self.W_enc, self.b_enc):
                    bound = 1 / math.sqrt(self.d_model)
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)
                nn.init.orthogonal_(self.W_dec, generator=generator)
                bound = 1 / math.sqrt(self.n_latents)
                nn.init.uniform_(self.b_dec, -bound, bound, generator=generator)
            case "tied":
                directions = F.normalize(torch.randn(self.n_latents, self.d_out, generator=generator), dim=-1)
                self.W_dec.copy_(init_norm * directions)
                if self.d_out != self.d_model:  # nothing to tie it to
                    directions = F.normalize(torch.randn(self.n_latents, self.d_model, generator=generator), dim=-1)
                self.W_enc.copy_(init_norm * directions.T)
                nn.init.zeros_(self.b_enc)
                nn.init.zeros_(self.b_dec)

    @abstractmethod
    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        """The codes of activations; `side` is the gradient of a loss at what the SAE writes, for those that look at it."""

    @abstractmethod
    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """The sparsity term before its coefficient λ; `weight` (0 or 1 a token) leaves tokens out of the mean."""

    def auxiliary(
        self, codes: Codes, target: Float[Tensor, "tokens d_out"], *, weight: Float[Tensor, "tokens"] | None
    ) -> Float[Tensor, ""] | None:
        """Return the architecture's own extra term, always a local one, whatever the loss; None: it has no such term."""
        return None

    def observe(self, codes: Codes) -> None:
        """Takes a training step's codes into the architecture's running means; there are none here."""

    def advance(self, progress: float) -> None:
        """Told before every training step: `progress` (0 to 1) of the steps are done. For schedules; there is none here."""

    def parameter_groups(self, lr: float) -> list[ParameterGroup]:
        """Return the parameters as the optimiser's groups; one that says nothing else moves by `lr` and decays as the optimiser does."""
        return [{"params": list(self.parameters())}]

    def pre_activations(self, x: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens n_latents"]:
        """(s_in · x − b_dec) W_enc + b_enc, without b_dec unless `subtract_b_dec`.

        b_dec goes through W_enc by itself: its gradient then costs no product over tokens.
        """
        bias = self.b_enc - self.b_dec @ self.W_enc if self.subtract_b_dec else self.b_enc
        return F.linear(x * self.input_scale, self.W_enc.T, bias)

    def dictionary(self) -> Float[Tensor, "n_latents d_out"]:
        """The effective decoder: a unit-norm direction a latent."""
        return F.normalize(self.W_dec, dim=-1)

    def decode(self, codes: Codes) -> Float[Tensor, "tokens d_out"]:
        """The reconstruction x̂, on the scale of the activations."""
        return (codes.c @ self.dictionary() + self.b_dec) / self.output_scale

    def forward(self, x: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens d_out"]:
        """x̂ of activations in any arrangement, so that an SAE can stand in a splice as it is."""
        return self.decode(self.encode(x.reshape(-1, x.shape[-1]))).view(*x.shape[:-1], self.d_out)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, "d_out"], *, input_scale: float, output_scale: float | None = None) -> "SAE":
        """Sets the decoder bias to the mean activation, and what inputs and outputs are multiplied with."""
        self.input_scale.fill_(input_scale)
        self.output_scale.fill_(input_scale if output_scale is None else output_scale)
        self.b_dec.copy_(mean * self.output_scale)
        return self

    @torch.no_grad()
    def start_from(self, saved: "SAE") -> None:
        """Takes over the function of a folded SAE of this architecture, on this one's own scales.

        Raises:
            UserError: where it is of another architecture or shape.
        """
        if not isinstance(self, type(saved)):
            raise UserError(f"holds a {type(saved).__name__}, which no {type(self).__name__} can go on from")
        if (saved.d_model, saved.n_latents, saved.d_out) != (self.d_model, self.n_latents, self.d_out):
            raise UserError(
                f"holds {saved.n_latents} latents of {saved.d_model} → {saved.d_out} dimensions; here are "
                f"{self.n_latents} of {self.d_model} → {self.d_out}"
            )
        saved = copy.deepcopy(saved)
        saved.rescale_codes(self.output_scale)
        saved.W_enc.mul_(self.output_scale / self.input_scale)
        self.load_state_dict(
            dict(saved.named_parameters()), strict=False
        )  # scales and running means stay this one's own
        self.subtract_b_dec = False  # it is folded into the biases

    @torch.no_grad()
    def fold(self) -> "SAE":
        """What is judged, saved and shared: a function of one token's activation alone, with a stored decoder of unit norm,
        scales of 1 and nothing subtracted from the input.

        The same function, unless the architecture's training looks at more than one token's activation.
        """
        sae = copy.deepcopy(self).eval()
        if self.subtract_b_dec:
            sae.shift_pre_activations(-self.b_dec @ self.W_enc)
            sae.subtract_b_dec = False
        sae.W_dec.copy_(self.dictionary())
        sae.W_enc.mul_(self.input_scale / self.output_scale)
        sae.rescale_codes(1 / self.output_scale)
        sae.input_scale.fill_(1.0)
        sae.output_scale.fill_(1.0)
        return sae

    @torch.no_grad()
    def shift_pre_activations(self, by: Float[Tensor, "n_latents"]) -> None:
        """Adds to every product with W_enc: to the encoder's bias here, and to a subclass's other ones."""
        self.b_enc.add_(by)

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        """Multiplies what has the unit of the codes: biases here, and a subclass's thresholds. Encoders are homogeneous."""
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)


def mean_over_tokens(values: Float[Tensor, "tokens"], weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
    """Mean over the tokens whose weight is 1, or over all."""
    return values.mean() if weight is None else (values * weight).sum() / weight.sum()


def update_running_mean(
    mean: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"], *, n: Tensor, at_least: float
) -> Float[Tensor, "*shape"]:
    """The mean of n values with one more taken in; none weighs less than `at_least`, so that old ones fade."""
    return mean + (value - mean) * (1 / (n + 1)).clamp_min(at_least)


Kind = TypeVar("Kind", bound=SAE)


@torch.no_grad()
def convert_sae(kind: type[Kind], sae: SAE, **own: float) -> Kind:
    """An SAE of that architecture with another's weights, biases and scales; `own` are the arguments that the kind adds."""
    made = kind(
        d_model=sae.d_model,
        n_latents=sae.n_latents,
        init="tied",
        init_norm=1.0,
        subtract_b_dec=sae.subtract_b_dec,
        generator=torch.Generator(),
        d_out=sae.d_out,
        **own,
    )
    made.to(sae.W_enc).train(sae.training)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "input_scale", "output_scale"):
        getattr(made, name).copy_(getattr(sae, name))
    return made
