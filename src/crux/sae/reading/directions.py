"""Directions in activation space that no SAE has learnt: the controls with which the latents of an SAE are compared.

A score of a latent says little about the SAE if a random direction has the same score (Heap et al. 2501.17727; Korznikov et al.
2602.14111). The kinds differ in how much of the activations' distribution they know:

    isotropic           z / ‖z‖ with z ~ N(0, I): nothing
    whitened            Σ^(−1/2) z, normalised: a random direction after whitening, in which all directions vary alike
    covariance          Σ^(1/2) z, normalised: has the activations' covariance, dominated by the directions of high variance
    pca                 principal components by descending variance, then their negatives
    example             x_t − μ of a random token, normalised
    example_difference  x_s − x_t of two random tokens, normalised
    coordinate          the coordinates of x, then their negatives
"""

from typing import Literal, NamedTuple, assert_never, get_args

import numpy as np
from jaxtyping import Float, Int

from crux.config.errors import UserError
from crux.config.progress import track

DirectionKind = Literal["isotropic", "whitened", "covariance", "pca", "example", "example_difference", "coordinate"]
DIRECTION_KINDS: tuple[DirectionKind, ...] = get_args(DirectionKind)

BLOCK = 2**23
"""Number of activations' entries that are read into memory at a time; 64 MB in float64."""

MIN_VARIANCE = 1e-10
"""Share of the largest variance below which a principal component is rounding: whitening leaves it out."""


class ActivationMoments(NamedTuple):
    """The mean and the covariance of activations over tokens, position 0 included, in float64."""

    n: int
    """Number of tokens."""
    mean: Float[np.ndarray, "d"]
    covariance: Float[np.ndarray, "d d"]
    """Σ (x − mean)(x − mean)ᵀ / n."""
    mean_norm: float
    """The mean of ‖x‖, in activation units."""


def measure_moments(x: Float[np.ndarray, "tokens d"]) -> ActivationMoments:
    """Return mean, covariance and mean norm of activations, which may be a memory-mapped file: they are read in two passes, in blocks.

    Raises:
        UserError: if there are less than two tokens.
    """
    n, d = x.shape
    if n < 2:
        raise UserError(f"a covariance needs the activations of at least 2 tokens, not of {n}")
    rows = max(1, BLOCK // d)
    total, norms = np.zeros(d), 0.0
    for first in range(0, n, rows):
        block = np.asarray(x[first : first + rows], np.float64)
        total += block.sum(0)
        norms += np.linalg.norm(block, axis=1).sum()
    mean, products = total / n, np.zeros((d, d))
    for first in track(range(0, n, rows), "covariance of the activations"):
        block = x[first : first + rows] - mean
        products += block.T @ block
    return ActivationMoments(n, mean, products / n, float(norms / n))


def find_principal_components(
    moments: ActivationMoments,
) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d d"]]:
    """Return the variances and the unit principal components, one per row, by descending variance.

    The sign of a component is such that its entry of the largest size is positive.
    """
    variances, vectors = np.linalg.eigh(moments.covariance)
    components = vectors.T[::-1]
    largest = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1)
    return np.maximum(variances[::-1], 0), np.where(largest < 0, -components, components)


def draw_directions(
    kind: DirectionKind,
    n: int,
    *,
    moments: ActivationMoments,
    x: Float[np.ndarray, "tokens d"],
    seed: int,
) -> Float[np.ndarray, "{n} d"]:
    """Return `n` unit directions of a kind, in float64; the same ones for the same seed.

    `pca` and `coordinate` have 2 d different directions, both signs of each; if `n` is larger, they are repeated from the first one on.

    Args:
        moments: of `x`.
        x: the activations from which `example` and `example_difference` draw; may be memory-mapped.

    Raises:
        UserError: if the activations do not vary.
    """
    if not np.trace(moments.covariance) > 0:
        raise UserError("the activations do not vary: all tokens have the same one")
    d = len(moments.mean)
    # a generator of its own for each kind: the directions of one do not depend on which others are drawn
    rng = np.random.default_rng([seed, DIRECTION_KINDS.index(kind)])
    match kind:
        case "isotropic":
            directions = rng.standard_normal((n, d))
        case "whitened" | "covariance":
            directions = _shape_noise(rng.standard_normal((n, d)), moments, power=-0.5 if kind == "whitened" else 0.5)
        case "pca":
            components = find_principal_components(moments)[1]
            directions = _repeat(np.concatenate([components, -components]), n)
        case "coordinate":
            directions = _repeat(np.concatenate([np.eye(d), -np.eye(d)]), n)
        case "example":
            directions = _draw_differences(x, n, rng=rng, origin=moments.mean)
        case "example_difference":
            directions = _draw_differences(x, n, rng=rng, origin=None)
        case _:
            assert_never(kind)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _shape_noise(z: Float[np.ndarray, "n d"], moments: ActivationMoments, *, power: float) -> Float[np.ndarray, "n d"]:
    """Return Σ^power z for each row z, with the principal components without variance left out."""
    variances, components = find_principal_components(moments)
    kept = variances > MIN_VARIANCE * variances[0]
    return (z @ components[kept].T * variances[kept] ** power) @ components[kept]


def _repeat(directions: Float[np.ndarray, "m d"], n: int) -> Float[np.ndarray, "n d"]:
    return directions[np.arange(n) % len(directions)]


def _draw_differences(
    x: Float[np.ndarray, "tokens d"], n: int, *, rng: np.random.Generator, origin: Float[np.ndarray, "d"] | None
) -> Float[np.ndarray, "n d"]:
    """Return x_s − origin, or x_s − x_t if there is no origin, of random tokens, drawn again as long as it is zero."""
    directions = np.zeros((n, x.shape[1]))
    missing = np.arange(n)
    while len(missing):
        start = origin if origin is not None else _take(x, rng.integers(0, len(x), len(missing)))
        directions[missing] = _take(x, rng.integers(0, len(x), len(missing))) - start
        missing = missing[~directions[missing].any(1)]
    return directions


def _take(x: Float[np.ndarray, "tokens d"], rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n d"]:
    return np.asarray(x[rows], np.float64)
