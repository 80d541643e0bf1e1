"""What every sparse autoencoder is: codes, a unit-norm dictionary, a sparsity penalty.

A new architecture is one file beside this one: a subclass that says how it encodes and what it is penalised for.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Codes(NamedTuple):
    """What an encoder returns."""

    c: Float[Tensor, "tokens n_latents"]
    """The sparse latents; zero where a latent does not fire."""


class SAE(nn.Module, ABC):
    """x ↦ x̂ = (D c + b_dec) / s with c = encode(s·x), D the unit-norm dictionary and s = `input_scale`.

    The decoder is normalised in the forward pass, so that gradients flow through the norm (Braun et al., the authors' code):
    the stored `W_dec` need not have unit norm, `dictionary()` has.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    input_scale: Tensor

    def __init__(self, *, d_model: int, n_latents: int) -> None:
        super().__init__()
        if n_latents < 1:
            raise ValueError(f"an SAE needs at least one latent, not {n_latents}")
        self.d_model, self.n_latents = d_model, n_latents
        self.W_enc = nn.Parameter(torch.empty(d_model, n_latents))
        self.b_enc = nn.Parameter(torch.empty(n_latents))
        self.W_dec = nn.Parameter(torch.empty(n_latents, d_model))
        self.b_dec = nn.Parameter(torch.empty(d_model))
        self.register_buffer("input_scale", torch.ones(()))

    @abstractmethod
    def encode(self, x: Float[Tensor, "tokens d_model"], side: Tensor | None = None) -> Codes:
        """The codes of activations; `side` carries what an architecture needs per token besides x."""

    @abstractmethod
    def penalty(self, codes: Codes, *, weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
        """The sparsity term before its coefficient λ; `weight` (0 or 1 a token) leaves tokens out of the mean."""

    def auxiliary(self, x: Float[Tensor, "tokens d_model"], codes: Codes) -> Float[Tensor, ""]:
        """An architecture's own extra term: always a local one, whatever the loss. None here: zero."""
        return x.new_zeros(())

    def dictionary(self) -> Float[Tensor, "n_latents d_model"]:
        """The effective decoder: a unit-norm direction a latent."""
        return F.normalize(self.W_dec, dim=-1)

    def decode(self, codes: Codes) -> Float[Tensor, "tokens d_model"]:
        """The reconstruction x̂, on the scale of the activations that came in."""
        return (codes.c @ self.dictionary() + self.b_dec) / self.input_scale

    def forward(self, x: Float[Tensor, "*tokens d_model"]) -> Float[Tensor, "*tokens d_model"]:
        """x̂ of activations in any arrangement, so that an SAE can stand in a splice as it is."""
        return self.decode(self.encode(x.reshape(-1, x.shape[-1]))).view_as(x)

    @torch.no_grad()
    def start_at(self, mean: Float[Tensor, "d_model"], *, input_scale: float) -> "SAE":
        """Sets the decoder bias to the mean activation and the scale that inputs are multiplied with."""
        self.input_scale.fill_(input_scale)
        self.b_dec.copy_(mean * input_scale)
        return self

    @abstractmethod
    def folded(self) -> "SAE":
        """The same function with a stored decoder of unit norm and `input_scale` = 1: what is saved and shared."""
