"""How long a step may be: ε h must stay far below 4, h = nβ a + γ for the largest curvature a."""

from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError

SHARE = 0.1
"""ε h of the default: the energy of the stiffest direction comes out 1 / (1 − 0.1/4) = 1.026 times too large (predicted.py)."""

CORRECTED_SHARE = 0.5
"""Of samplers that accept and refuse: no step size biases them, a short one costs time."""

DIVERGES = 4.0
"""From this ε h on the stiffest direction grows without bound."""


def default_step_size(
    largest: Float[Tensor, "case"],
    *,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    stretch: float,
    corrected: bool,
) -> Float[Tensor, "case"]:
    """Return ε = 0.1 / (nβ a_max + γ), shorter by as much as the sampler may lengthen it; 0.5 for one that accepts and refuses.

    Raises:
        UserError: if nothing bounds it, with γ = 0 at a point without curvature.
    """
    h = stiffness(largest, nbeta=nbeta, gamma=gamma)
    if not bool((h > 0).all()):
        raise UserError(
            "step_size: the loss has no curvature at w* and gamma is 0, so that no step size follows; give one"
        )
    return (CORRECTED_SHARE if corrected else SHARE) / (h * stretch)


def stiffness(
    largest: Float[Tensor, "#*row"], *, nbeta: Float[Tensor, "#*row"], gamma: Float[Tensor, "#*row"]
) -> Float[Tensor, "*row"]:
    """Return h_max = nβ a_max + γ."""
    return nbeta * largest.clamp(min=0) + gamma


def check_step_size(step_size: Float[Tensor, "row"], h: Float[Tensor, "row"], *, where: str) -> None:
    """Raise a UserError for a step size that diverges, which says `where` the curvature is that large."""
    worst = int((step_size * h).argmax())
    if (step_size * h)[worst] >= DIVERGES:
        raise UserError(
            f"step_size: {step_size[worst]:.3g} is a step size that diverges: {where}, ε · (nβ a_max + γ) is "
            f"{(step_size * h)[worst]:.3g} and must be below 4; the default is {SHARE / h[worst]:.3g}"
        )
