"""The base class of all sparse autoencoders, with its unit-norm dictionary.

A new architecture is one file next to this one: a subclass of `SAE` that defines `encode` and `penalty`.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NotRequired, TypedDict, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.sae.architectures.active_codes import (
    ActiveCodes,
    ActiveIndex,
    decode_active,
    find_active,
    gather_active,
    index_if_sparse,
)
from crux.sae.architectures.codes import Codes

Init = Literal["paper", "tied"]


class ParameterGroup(TypedDict):
    """A group of parameters with the same learning rate and weight decay, in the format of torch optimisers."""

    params: list[nn.Parameter]
    lr: NotRequired[float]
    weight_decay: NotRequired[float]


class BaseArguments(TypedDict):
    """The arguments that every architecture has; `SAE` documents them."""

    d_model: int
    n_latents: int
    init: Init
    init_norm: float
    subtract_b_dec: bool
    generator: torch.Generator
    d_out: NotRequired[int | None]


class SAE(nn.Module, ABC):
    """A sparse autoencoder: x̂ = (c D + b_dec) / s_out with c = encode(s_in · x) and D the unit-norm dictionary.

    The decoder is normalised in the forward pass, so that gradients flow through the norm (as in the code of Braun et al.
    2405.12241). The rows of the stored `W_dec` need not have unit norm; the rows of `dictionary()` do. The scales s_in and s_out
    (`input_scale`, `output_scale`) are 1 unless activations are normalised. A transcoder reads and writes different
    activations, of `d_model` and `d_out` dimensions; every other SAE reconstructs the activation that it reads.

    Args:
        init: `paper`: encoder and its bias U(±1/√d_model), decoder orthogonal (a tight frame), decoder bias U(±1/√n_latents),
            encoder and decoder independent, so that half of all latents fire at first (Braun et al.). `tied`: the encoder is
            the transposed decoder, with random directions of norm `init_norm`, and the biases are zero (Conerly et al.,
            "Update on how we train SAEs", 2024).
        init_norm: norm of each encoder direction if `init` is `tied`.
        subtract_b_dec: whether the encoder reads x − b_dec instead of x.
        generator: random generator of the initial weights.
        d_out: dimensions of the output; None: the same as those of the input.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    input_scale: Tensor
    output_scale: Tensor
    metadata: Mapping[str, Any] | None = None
    """The metadata of a loaded SAE: its subject, hook points, weight processing, …; None for an SAE that was not loaded."""

    sparse: bool = True
    """Whether products with the codes are sparse where that is faster. `torch.func.vmap` needs dense ones: set it to False there."""

    BATCH_WIDE: ClassVar[bool] = False
    """True if latents are selected over the whole batch in training. Then the loss cannot leave out any token of the batch."""
    RUNNING_MEANS: ClassVar[tuple[str, ...]] = ()
    """Names of the buffers in which `observe` keeps running means. They are linear in each step's mean over tokens, so that they
    can be averaged over the processes of a distributed run."""

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
        assert not (subtract_b_dec and self.d_out != d_model), (
            "a transcoder's b_dec is not in the space of the activations that it reads"
        )
        self.W_enc = nn.Parameter(torch.empty(d_model, n_latents))
        self.b_enc = nn.Parameter(torch.empty(n_latents))
        self.W_dec = nn.Parameter(torch.empty(n_latents, self.d_out))
        self.b_dec = nn.Parameter(torch.empty(self.d_out))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("output_scale", torch.ones(()))
        self._initialise(init, init_norm, generator)

    def extra_repr(self) -> str:
        width = f"d_model={self.d_model}, n_latents={self.n_latents}"
        return width if self.d_out == self.d_model else f"{width}, d_out={self.d_out}"

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
                if self.d_out != self.d_model:  # a transcoder has no decoder of this width to tie its encoder to
                    directions = F.normalize(torch.randn(self.n_latents, self.d_model, generator=generator), dim=-1)
                self.W_enc.copy_(init_norm * directions.T)
                nn.init.zeros_(self.b_enc)
                nn.init.zeros_(self.b_dec)

    @abstractmethod
    def encode(self, x: Float[Tensor, "tokens d_model"], side: Float[Tensor, "tokens d_out"] | None = None) -> Codes:
        """Return the codes of activations.

        `side` is the gradient of a loss with respect to the activation that the SAE writes; only gradient SAEs use it.
        """

    @torch.no_grad()
    def encode_active(self, x: Float[Tensor, "tokens d_model"]) -> ActiveCodes:
        """Return the codes of `encode` that are not zero, by latent within each token, without a gradient."""
        codes = self.encode(x)
        return find_active(codes.c) if codes.active is None else codes.active.sorted()

    @abstractmethod
    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """Return the sparsity term without its coefficient λ; tokens of `weight` 0 (not 1) are left out of the mean."""

    def auxiliary(
        self, codes: Codes, target: Float[Tensor, "tokens d_out"], *, weight: Float[Tensor, "tokens"] | None
    ) -> Float[Tensor, ""] | None:
        """Return the architecture's extra loss term, or None if it has none. It depends only on activations at the SAE, for every loss."""
        return None

    def observe(self, codes: Codes) -> None:
        """Update the architecture's running means with the codes of a training step. The base class has none."""

    def advance(self, progress: float) -> None:
        """Update the architecture's schedules before a training step. The base class has none.

        Args:
            progress: share of the training steps that are done, from 0 to 1.
        """

    def parameter_groups(self, lr: float) -> list[ParameterGroup]:
        """Return the parameter groups for the optimiser. A group without its own `lr` or `weight_decay` has the optimiser's."""
        return [{"params": list(self.parameters())}]

    def pre_activations(self, x: Float[Tensor, "tokens d_model"]) -> Float[Tensor, "tokens n_latents"]:
        """Return (s_in · x − b_dec) W_enc + b_enc; b_dec is only subtracted if `subtract_b_dec` is true.

        The product b_dec W_enc is computed separately: then its gradient needs no product over tokens.
        """
        bias = self.b_enc - self.b_dec @ self.W_enc if self.subtract_b_dec else self.b_enc
        return F.linear(x * self.input_scale, self.W_enc.T, bias)

    def index_if_sparse(self, active: Bool[Tensor, "tokens n_latents"]) -> ActiveIndex | None:
        """Return the index of the latents that are active, or None if dense products are faster or needed."""
        return index_if_sparse(active) if self.sparse else None

    def gather_active(
        self,
        x: Float[Tensor, "tokens d_model"],
        pre: Float[Tensor, "tokens n_latents"],
        index: ActiveIndex,
        *,
        b_enc: Float[Tensor, "n_latents"] | None,
    ) -> Float[Tensor, "nnz"]:
        """Return the encoder's product at the places of an index, with sparse gradients; `pre` is all of it, without a gradient."""
        b_dec = self.b_dec if self.subtract_b_dec else None
        return gather_active(pre, index, x=x * self.input_scale, W_enc=self.W_enc, b_enc=b_enc, b_dec=b_dec)

    def sparse_codes(
        self,
        x: Float[Tensor, "tokens d_model"],
        pre: Float[Tensor, "tokens n_latents"],
        index: ActiveIndex,
        activate: Callable[[Tensor], Tensor],
        *,
        observed: Float[Tensor, ""] | None = None,
    ) -> Codes:
        """Return the codes at the places of an index, which are a function of the pre-activations there; all others are zero."""
        pre = pre.detach()

        def gather(places: ActiveIndex) -> Tensor:
            return self.gather_active(x, pre, places, b_enc=self.b_enc)

        active_pre = gather(index)
        active = ActiveCodes(index, activate(active_pre))
        return Codes(None, pre, observed, active=active, gather=gather, active_pre=active_pre)

    def dictionary(self) -> Float[Tensor, "n_latents d_out"]:
        """Return the effective decoder: one unit-norm direction per latent."""
        return F.normalize(self.W_dec, dim=-1)

    def decode(self, codes: Codes) -> Float[Tensor, "tokens d_out"]:
        """Return the reconstruction x̂, on the scale of the activations."""
        decoded = codes.c @ self.dictionary() if codes.active is None else decode_active(codes.active, self.W_dec)
        return (decoded + self.b_dec) / self.output_scale

    def forward(self, x: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens d_out"]:
        """Return x̂ for activations with any leading dimensions, so that an SAE can be used directly as a splice function."""
        return self.decode(self.encode(x.reshape(-1, x.shape[-1]))).view(*x.shape[:-1], self.d_out)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, "d_out"], *, input_scale: float, output_scale: float | None = None) -> "SAE":
        """Set the decoder bias to the mean activation, and set the input and output scales; return the SAE."""
        self.input_scale.fill_(input_scale)
        self.output_scale.fill_(input_scale if output_scale is None else output_scale)
        self.b_dec.copy_(mean * self.output_scale)
        return self

    @torch.no_grad()
    def start_from(self, saved: "SAE") -> None:
        """Copy the function of a saved (folded) SAE of the same architecture, keeping the scales of this SAE.

        Raises:
            UserError: if the saved SAE has another architecture or shape.
        """
        if not isinstance(self, type(saved)):
            raise UserError(f"holds a {type(saved).__name__}, which a {type(self).__name__} cannot start from")
        if (saved.d_model, saved.n_latents, saved.d_out) != (self.d_model, self.n_latents, self.d_out):
            raise UserError(
                f"holds {saved.n_latents} latents of {saved.d_model} → {saved.d_out} dimensions; this run needs "
                f"{self.n_latents} of {self.d_model} → {self.d_out}"
            )
        saved = copy.deepcopy(saved)
        saved.rescale_codes(self.output_scale)
        saved.W_enc.mul_(self.output_scale / self.input_scale)
        # without the buffers: scales and running means stay those of this SAE
        self.load_state_dict(dict(saved.named_parameters()), strict=False)
        self.subtract_b_dec = False  # the saved SAE has it folded into its biases

    @torch.no_grad()
    def fold(self) -> "SAE":
        """Return a folded copy, which is what is evaluated, saved and shared.

        A folded SAE is a function of a single token's activation. Its stored decoder has unit norm, its scales are 1, and
        nothing is subtracted from its input. It computes the same function as this SAE, unless the architecture uses more
        than one token's activation in training (BatchTopK) or a gradient.
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
        """Add a vector to all pre-activations by adding it to the encoder bias; a subclass adds it to its further biases."""
        self.b_enc.add_(by)

    @torch.no_grad()
    def rescale_codes(self, factor: Float[Tensor, ""]) -> None:
        """Multiply everything that has the unit of the codes: the biases, and the thresholds of a subclass.

        With inputs scaled by the same factor, the codes are then scaled by it, since encoders are homogeneous.
        """
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)


Architecture = TypeVar("Architecture", bound=SAE)


@torch.no_grad()
def convert_sae(architecture: type[Architecture], sae: SAE, **arguments: float) -> Architecture:
    """Return an SAE of another architecture with the weights, biases and scales of `sae`.

    Args:
        arguments: the arguments that the new architecture has besides `BaseArguments`.
    """
    converted = architecture(
        d_model=sae.d_model,
        n_latents=sae.n_latents,
        init="tied",
        init_norm=1.0,
        subtract_b_dec=sae.subtract_b_dec,
        generator=torch.Generator(),
        d_out=sae.d_out,
        **arguments,
    )
    converted.to(sae.W_enc).train(sae.training)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "input_scale", "output_scale"):
        getattr(converted, name).copy_(getattr(sae, name))
    return converted
