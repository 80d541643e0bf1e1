"""Noise that has, at every token, exactly the norm of an SAE's error: the controls of the residual error.

Norms that are equal only in the mean would compare different distributions of norms; the effect of an error grows with the square of
its norm, so that the norms are equal token by token.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.evaluation.token_moments import covariance_root
from crux.sae.evaluation.token_permutations import cycle

NoiseKind = Literal["permuted", "isotropic", "error_covariance", "activation_covariance", "towards_other"]
NOISE_KINDS: tuple[NoiseKind, ...] = (
    "permuted",
    "isotropic",
    "error_covariance",
    "activation_covariance",
    "towards_other",
)


class Noise(NamedTuple):
    """Noise for every token of a batch."""

    values: Float[Tensor, "batch pos d"]
    """What is added to the activation, in its units."""
    n_replaced: int
    """Number of tokens whose own direction was the zero vector, so that an isotropic one was drawn instead."""


class ErrorNoise(NamedTuple):
    """Draws noise with the norms of an SAE's error.

    permuted                the error of another token: position 0 takes that of another position 0, the others that of another of theirs
    isotropic               a uniformly random direction
    error_covariance        Gaussian with the covariance of the error over positions ≥ 1, rescaled
    activation_covariance   Gaussian with the covariance of the activation over positions ≥ 1, rescaled
    towards_other           the direction from x to the activation of another token at a position ≥ 1
    """

    error_root: Float[Tensor, "d d"]
    """R with R Rᵀ = the (centred) covariance of the error; float32."""
    activation_root: Float[Tensor, "d d"]
    """The same for the activation."""

    @classmethod
    def from_moments(
        cls, error_covariance: Float[Tensor, "d d"], activation_covariance: Float[Tensor, "d d"], device: torch.device
    ) -> "ErrorNoise":
        """Return the noise with these covariances, in float64, on a device."""
        roots = (covariance_root(covariance) for covariance in (error_covariance, activation_covariance))
        return cls._make(root.float().to(device) for root in roots)

    def draw(
        self,
        kind: NoiseKind,
        *,
        x: Float[Tensor, "batch pos d"],
        error: Float[Tensor, "batch pos d"],
        generator: torch.Generator,
    ) -> Noise:
        """Draw one noise vector per token with the norm of its error; `generator` is on the device of `x`.

        The batch must have at least two windows of two tokens each.
        """
        match kind:
            case "permuted":
                directions = permute_tokens(error, generator=generator)
            case "isotropic":
                directions = draw_normal(error, generator=generator)
            case "error_covariance":
                directions = draw_normal(error, generator=generator) @ self.error_root.T
            case "activation_covariance":
                directions = draw_normal(error, generator=generator) @ self.activation_root.T
            case "towards_other":
                directions = draw_other_tokens(x, generator=generator) - x
        return match_norms(directions, error.norm(dim=-1), generator=generator)


def draw_normal(like: Float[Tensor, "*shape"], *, generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Draw standard normal numbers in the shape of a tensor, in float32."""
    return torch.randn(like.shape, generator=generator, device=like.device)


def match_norms(
    directions: Float[Tensor, "batch pos d"], norms: Float[Tensor, "batch pos"], *, generator: torch.Generator
) -> Noise:
    """Rescale the vectors to these norms; a vector that is zero has no direction and is replaced by an isotropic one."""
    lengths = directions.norm(dim=-1, keepdim=True)
    zero = (lengths == 0) & (norms[..., None] > 0)
    if n_zero := int(zero.sum()):
        directions = torch.where(zero, draw_normal(directions, generator=generator), directions)
        lengths = directions.norm(dim=-1, keepdim=True)
    unit = directions / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)
    return Noise(unit * norms[..., None], n_zero)


def permute_tokens(values: Float[Tensor, "batch pos d"], *, generator: torch.Generator) -> Float[Tensor, "batch pos d"]:
    """Give every token the vector of another one: position 0 that of another window's position 0, the others that of another of theirs."""
    permuted = torch.empty_like(values)
    for places in (slice(0, 1), slice(1, None)):
        part = values[:, places]
        flat = part.flatten(0, 1)
        permuted[:, places] = flat[cycle(len(flat), generator=generator, device=flat.device)].view(part.shape)
    return permuted


def draw_other_tokens(
    values: Float[Tensor, "batch pos d"], *, generator: torch.Generator
) -> Float[Tensor, "batch pos d"]:
    """Give every token the vector of another token at a position ≥ 1; position 0 too, since its own kind may be all alike."""
    rest = values[:, 1:].flatten(0, 1)
    others = torch.empty_like(values)
    others[:, 1:] = rest[cycle(len(rest), generator=generator, device=rest.device)].view(values[:, 1:].shape)
    others[:, 0] = rest[torch.randint(len(rest), (len(values),), generator=generator, device=rest.device)]
    return others
