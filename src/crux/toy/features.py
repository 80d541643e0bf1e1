"""Draw sparse synthetic features for toy models of superposition (Elhage et al. 2209.10652), independent or in sets.

The density p = P(x_i ≠ 0) = 1 − S is that of a single feature, however features occur together. The magnitude of an active
feature is uniform on [0, 1), or on [-1, 1) if `signed`, and independent of everything else.

    independent      each feature is active independently
    correlated       the features of a set are active together or not at all
    anticorrelated   at most one feature of a set is active: the set is active with probability p · size, and
                     then one of its features, chosen uniformly
    one_active       exactly one of all features is active, chosen uniformly: p = 1/n, the limit of high sparsity
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.options import Cooccurrence

MAX_DENSITY_BY_POSITION = 0.1
"""Up to this density only the positions of active features are drawn, which is faster; above it, a random number for each position."""


class Purpose(Enum):
    """The purposes of random numbers. Each purpose has a separate sequence for every seed."""

    initial = 0
    training = 1
    held_out = 2


class FeatureDistribution(NamedTuple):
    """The distribution of the features that an instance sees, apart from their densities."""

    together: Cooccurrence
    n_sets: int
    """Number of equal sets of neighbouring features that are active together or exclude each other; 1 if features form no sets."""
    signed: bool
    """Magnitudes from [-1, 1) instead of [0, 1)."""
    unit: bool = False
    """Samples are scaled to norm 1, except those without an active feature (Henighan et al. 2023); magnitudes are then not uniform."""


def check_distribution(distribution: FeatureDistribution, density: Float[Tensor, "*streams n_features"]) -> None:
    """Raise a UserError if no such features exist, for example if a density is not in (0, 1] or differs within a set."""
    n = density.shape[-1]
    if not bool(((density > 0) & (density <= 1)).all()):
        raise UserError("densities must be more than 0 and at most 1")
    if distribution.n_sets < 1 or n % distribution.n_sets:
        raise UserError(f"{n} features cannot be {distribution.n_sets} equal sets")
    if distribution.together is Cooccurrence.one_active and not torch.allclose(
        density, torch.full_like(density, 1 / n)
    ):
        raise UserError(f"one_active: each of {n} features must have density 1/{n}")
    if distribution.together in (Cooccurrence.correlated, Cooccurrence.anticorrelated):
        sets = density.unflatten(-1, (distribution.n_sets, -1))
        if not bool((sets == sets[..., :1]).all()):
            raise UserError(f"{distribution.together.value}: the features of a set must have the same density")
        if distribution.together is Cooccurrence.anticorrelated and bool((sets.sum(-1) > 1 + 1e-6).any()):
            size = n // distribution.n_sets
            raise UserError(
                f"anticorrelated: at most one of {size} is active, so a density can be at most {1 / size:g}"
            )


def numpy_generator(seed: int, purpose: Purpose, index: int) -> np.random.Generator:
    """Return the counter-based generator of (seed, purpose, index); its numbers do not depend on what was drawn before."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose.value], counter=[0, 0, index, 0]))


class FeatureBatches(Sequence[Float[Tensor, "stream batch n_features"]]):
    """Batches of features, with one stream per instance, or per group of instances that see the same data.

    Batch i of a stream is a pure function of (its seed, its densities, i); it does not depend on the other streams.

    Args:
        seeds: one per stream.
        density: p of the features, per stream.
        n_batches: number of batches.
        points: draw this many points once and return them as every batch (finite data); None: fresh data in each batch.
    """

    def __init__(
        self,
        distribution: FeatureDistribution,
        *,
        seeds: Int[Tensor, "stream"],
        density: Float[Tensor, "stream n_features"],
        batch: int,
        n_batches: int,
        points: int | None,
        purpose: Purpose,
    ) -> None:
        check_distribution(distribution, density)
        self.distribution, self.purpose, self.points = distribution, purpose, points
        self.seeds: list[int] = seeds.tolist()
        self.density = density.double().numpy()
        self.batch, self.n_batches = points or batch, n_batches
        self._fixed = self._draw(0) if points is not None else None

    def __len__(self) -> int:
        return self.n_batches

    def __getitem__(self, i: int) -> Float[Tensor, "stream batch n_features"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not 0 <= i < self.n_batches:
            raise IndexError(i)
        return self._fixed if self._fixed is not None else self._draw(i)

    def _draw(self, i: int) -> Float[Tensor, "stream batch n_features"]:
        x = np.zeros((len(self.seeds), self.batch, self.density.shape[-1]), dtype=np.float32)
        for stream, seed, density in zip(x, self.seeds, self.density, strict=True):
            _fill_active(stream, self.distribution, density, numpy_generator(seed, self.purpose, i))
        if self.distribution.signed:
            np.subtract(2 * x, 1, out=x, where=x != 0)
        if self.distribution.unit:
            length = np.linalg.norm(x, axis=-1, keepdims=True)
            np.divide(x, length, out=x, where=length > 0)
        return torch.from_numpy(x)


def _fill_active(
    x: np.ndarray, distribution: FeatureDistribution, density: np.ndarray, rng: np.random.Generator
) -> None:
    """Fill the active positions of x [batch, n_features], which is all zeros, with magnitudes from (0, 1)."""
    batch, n = x.shape
    match distribution.together:
        case Cooccurrence.independent if density.max() > MAX_DENSITY_BY_POSITION:
            u = rng.random(x.shape, dtype=np.float32)
            p = density.astype(np.float32)
            np.divide(u, p, out=x, where=u < p)  # a feature is active if u < p; u / p is then uniform on [0, 1)
        case Cooccurrence.independent:
            positions = _draw_positions(rng, x.size, float(density.max()))
            if density.min() < density.max():  # thin them out to the density of each feature
                active = rng.random(len(positions)) * density.max() < density[positions % n]
                positions = positions[active]
            x.reshape(-1)[positions] = _draw_magnitudes(rng, len(positions))
        case Cooccurrence.correlated:
            p = density.reshape(distribution.n_sets, -1)[:, 0]
            active = np.repeat(rng.random((batch, distribution.n_sets)) < p, n // distribution.n_sets, axis=1)
            x[active] = _draw_magnitudes(rng, int(active.sum()))
        case Cooccurrence.anticorrelated | Cooccurrence.one_active:
            n_sets = 1 if distribution.together is Cooccurrence.one_active else distribution.n_sets
            size = n // n_sets
            p = (
                density.reshape(n_sets, size).sum(1)
                if distribution.together is Cooccurrence.anticorrelated
                else np.ones(1)
            )
            rows, sets = np.nonzero(rng.random((batch, n_sets)) < p)
            x[rows, sets * size + rng.integers(size, size=len(rows))] = _draw_magnitudes(rng, len(rows))


def _draw_magnitudes(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n, dtype=np.float32)


def _draw_positions(rng: np.random.Generator, n: int, p: float) -> np.ndarray:
    """Draw the active ones of n positions, each independently with probability p; the gaps between them are geometric."""
    positions = np.zeros(0, dtype=np.int64)
    last = -1
    while last < n:
        # n p gaps suffice on average; with six standard deviations more, a second round is hardly ever needed
        gaps = rng.geometric(p, size=int(n * p + 6 * (n * p) ** 0.5 + 10))
        positions = np.concatenate([positions, last + np.cumsum(gaps)])
        last = int(positions[-1])
    return positions[positions < n]
