"""Choose and check step sizes: ε h must stay far below 4, where h = nβ a_max + γ and a_max is the largest curvature."""

from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError

DEFAULT_PRODUCT = 0.1
"""The product ε h at the default step size; the energy of the stiffest direction is then 1 / (1 − 0.1/4) = 1.026 times too large
(prediction.py)."""

DEFAULT_PRODUCT_CORRECTED = 0.5
"""The same for Metropolis-corrected samplers: no step size biases them, and a short one only costs time."""

MIN_DIVERGENT_PRODUCT = 4.0
"""Smallest product ε h at which the stiffest direction grows without bound."""


def default_step_size(
    largest: Float[Tensor, "case"],
    *,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    max_scale: float,
    corrected: bool,
) -> Float[Tensor, "case"]:
    """Return ε = 0.1 / ((nβ a_max + γ) · max_scale), with 0.5 instead of 0.1 for Metropolis-corrected samplers.

    Args:
        max_scale: largest factor by which the sampler scales ε.

    Raises:
        UserError: if γ = 0 and the loss has no curvature, so that the step size is unbounded.
    """
    h = stiffness(largest, nbeta=nbeta, gamma=gamma)
    if not bool((h > 0).all()):
        raise UserError(
            "step_size: the loss has no curvature at w* and gamma is 0, so that there is no default; give a value"
        )
    return (DEFAULT_PRODUCT_CORRECTED if corrected else DEFAULT_PRODUCT) / (h * max_scale)


def stiffness(
    largest: Float[Tensor, "#*row"], *, nbeta: Float[Tensor, "#*row"], gamma: Float[Tensor, "#*row"]
) -> Float[Tensor, "*row"]:
    """Return h = nβ a_max + γ, where negative a_max counts as 0."""
    return nbeta * largest.clamp(min=0) + gamma


def check_step_size(step_size: Float[Tensor, "row"], h: Float[Tensor, "row"], *, where: str) -> None:
    """Raise UserError if a step size diverges; the message says `where` the curvature is that large."""
    worst = int((step_size * h).argmax())
    if (step_size * h)[worst] >= MIN_DIVERGENT_PRODUCT:
        raise UserError(
            f"step_size: {step_size[worst]:.3g} diverges: {where}, ε · (nβ a_max + γ) is "
            f"{(step_size * h)[worst]:.3g} and must be below 4; the default is {DEFAULT_PRODUCT / h[worst]:.3g}"
        )
