"""Random directions: the chance levels of similarities between dictionaries.

Among n directions in d dimensions some are always similar, and directions that follow the variance of the activations are more similar
to each other than directions that do not. A cosine says something only in comparison with both, at the same n and d.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.sae.geometry.nearest import normalise_rows
from crux.subjects.subject import Subject


class RandomDirections(NamedTuple):
    """Two random dictionaries of the same size, from the same normal draws."""

    isotropic: Float[Tensor, "n d"]
    """Unit rows, uniformly distributed over all directions."""
    shaped: Float[Tensor, "n d"]
    """Unit rows, Gaussian with the covariance of the activations."""


@torch.no_grad()
def measure_covariance(
    subject: Subject, *, hook: str, batches: Iterable[Int[Tensor, "_batch _pos"]]
) -> Float[Tensor, "d d"]:
    """Return the covariance of the activation at a hook point over tokens at positions ≥ 1, in float64 on the CPU.

    Position 0 is left out: its activation is often much larger than all others, and would be the only direction that counts.

    Raises:
        UserError: if there are fewer than two tokens, or the covariance is not finite.
    """
    n, shift, total, products = 0, None, None, None
    for tokens in track(batches, f"covariance at {hook}"):
        clean = subject.clean(tokens.to(subject.device), capture=(hook,), final=False)
        x = clean.activations[hook][:, 1:].flatten(0, 1).cpu().double()
        shift = x.mean(0) if shift is None else shift  # close to the mean, so that no large numbers cancel
        x = x - shift
        n += len(x)
        total = x.sum(0) if total is None else total + x.sum(0)
        products = x.T @ x if products is None else products + x.T @ x
    if n < 2 or total is None or products is None:
        raise UserError("there is no text from which to compute the covariance of the activations")
    covariance = (products - total[:, None] * total / n) / n
    if not covariance.isfinite().all():
        raise UserError(f"the activations at {hook} are not finite, so they have no covariance")
    return covariance


@torch.no_grad()
def draw_directions(n: int, covariance: Float[Tensor, "d d"], *, seed: int) -> RandomDirections:
    """Draw n isotropic directions, and n Gaussian directions with a covariance; both are normalised.

    Args:
        covariance: that of the activations; only its shape matters, not its scale.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(n, len(covariance), generator=generator, dtype=torch.float64)
    variances, axes = torch.linalg.eigh(covariance.cpu().double())
    # with the symmetric root, which does not depend on the choice of axes of equal variance
    shaped = (draws @ axes * variances.clamp(min=0).sqrt()) @ axes.T
    return RandomDirections(normalise_rows(draws), normalise_rows(shaped))
