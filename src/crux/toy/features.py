"""Synthetic features for toy models of superposition (Elhage et al. 2209.10652): sparse, alone or in sets.

Density p is P(x_i ≠ 0) = 1 − S of each single feature, whatever they do together. An active feature's magnitude is uniform on
[0, 1), or on [-1, 1) where `signed`, and independent of all else.

    independent      each feature is active by itself
    correlated       the features of a set are active together or not at all
    anticorrelated   of a set at most one is active: the set is with probability p · size, then one of it, each as often
    one_active       exactly one feature of all, each as often: p = 1/n, the limit of high sparsity
"""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.options import Together

SPARSE = 0.1
"""Up to this density the places of active features are drawn, above it a number for every place."""


class Purpose(Enum):
    """What random numbers are for; each has a sequence of its own for every seed."""

    initial = 0
    training = 1
    held_out = 2


class FeatureDistribution(NamedTuple):
    """Where the features of an instance come from."""

    together: Together
    n_sets: int
    """Equal sets of neighbours that are active together or exclude each other; 1 where features have no sets."""
    signed: bool
    """Magnitudes from [-1, 1) instead of [0, 1)."""
    unit: bool = False
    """Samples are scaled to norm 1, but for those without an active feature (Henighan et al. 2023); magnitudes are uniform no more."""


def check_distribution(how: FeatureDistribution, density: Float[Tensor, "*streams n_features"]) -> None:
    """Raise a UserError if no such features can be: a density that is none, or that differs within a set."""
    n = density.shape[-1]
    if not bool(((density > 0) & (density <= 1)).all()):
        raise UserError("densities must be more than 0 and at most 1")
    if how.n_sets < 1 or n % how.n_sets:
        raise UserError(f"{n} features cannot be {how.n_sets} equal sets")
    if how.together is Together.one_active and not torch.allclose(density, torch.full_like(density, 1 / n)):
        raise UserError(f"one_active: each of {n} features has density 1/{n}")
    if how.together in (Together.correlated, Together.anticorrelated):
        sets = density.unflatten(-1, (how.n_sets, -1))
        if not bool((sets == sets[..., :1]).all()):
            raise UserError(f"{how.together.value}: the features of a set have one density")
        if how.together is Together.anticorrelated and bool((sets.sum(-1) > 1 + 1e-6).any()):
            raise UserError(
                f"anticorrelated: at most one of {n // how.n_sets} is active, so a density can be {how.n_sets / n:g} at most"
            )


def generator(seed: int, purpose: Purpose, index: int) -> np.random.Generator:
    """Return the random numbers of (seed, purpose, index), in any process and order: a counter-based generator needs no history."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose.value], counter=[0, 0, index, 0]))


class FeatureBatches(Sequence[Float[Tensor, "stream batch n_features"]]):
    """Batches of features, one stream an instance (or a group of instances that see the same data).

    Batch i of a stream is a pure function of (its seed, its densities, i): the same alone and beside a hundred others.

    Args:
        seeds: of each stream.
        density: p of each stream's features.
        n_batches: how many there are.
        points: draw so many points once and hand them out as every batch (finite data); None: fresh data in each.
    """

    def __init__(
        self,
        how: FeatureDistribution,
        *,
        seeds: Int[Tensor, "stream"],
        density: Float[Tensor, "stream n_features"],
        batch: int,
        n_batches: int,
        points: int | None,
        purpose: Purpose,
    ) -> None:
        check_distribution(how, density)
        self.how, self.purpose, self.points = how, purpose, points
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
            _fill(stream, self.how, density, generator(seed, self.purpose, i))
        if self.how.signed:
            np.subtract(2 * x, 1, out=x, where=x != 0)
        if self.how.unit:
            length = np.linalg.norm(x, axis=-1, keepdims=True)
            np.divide(x, length, out=x, where=length > 0)
        return torch.from_numpy(x)


def _fill(x: np.ndarray, how: FeatureDistribution, density: np.ndarray, rng: np.random.Generator) -> None:
    """Puts magnitudes from (0, 1) in the active places of x [batch, n_features], which is all zeros."""
    batch, n = x.shape
    match how.together:
        case Together.independent if density.max() > SPARSE:
            u = rng.random(x.shape, dtype=np.float32)
            share = density.astype(np.float32)  # given u < p, u / p is uniform
            np.divide(u, share, out=x, where=u < share)
        case Together.independent:
            places = _places(rng, x.size, float(density.max()))
            if density.min() < density.max():  # thinned
                kept = rng.random(len(places)) * density.max() < density[places % n]
                places = places[kept]
            x.reshape(-1)[places] = _magnitudes(rng, len(places))
        case Together.correlated:
            p = density.reshape(how.n_sets, -1)[:, 0]
            active = np.repeat(rng.random((batch, how.n_sets)) < p, n // how.n_sets, axis=1)
            x[active] = _magnitudes(rng, int(active.sum()))
        case Together.anticorrelated | Together.one_active:
            n_sets = 1 if how.together is Together.one_active else how.n_sets
            size = n // n_sets
            p = density.reshape(n_sets, size).sum(1) if how.together is Together.anticorrelated else np.ones(1)
            rows, sets = np.nonzero(rng.random((batch, n_sets)) < p)
            x[rows, sets * size + rng.integers(size, size=len(rows))] = _magnitudes(rng, len(rows))


def _magnitudes(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n, dtype=np.float32)


def _places(rng: np.random.Generator, n: int, p: float) -> np.ndarray:
    """Which of n places are active, each with probability p by itself: the gaps between them are geometric."""
    found = np.zeros(0, dtype=np.int64)
    last = -1
    while last < n:
        gaps = rng.geometric(p, size=int(n * p + 6 * (n * p) ** 0.5 + 10))
        found = np.concatenate([found, last + np.cumsum(gaps)])
        last = int(found[-1])
    return found[found < n]
