"""Sums over tokens for the table of single directions, and its rows."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.sae.evaluation.ratio_of_sums import ratio_of_sums
from crux.sae.evaluation.running_sums import MIN_VARIANCE_SHARE
from crux.sae.geometry.fisher_directions import Fisher


class DirectionRow(NamedTuple):
    """What an SAE and the network do with one direction u."""

    name: str
    pearson_pos0: float | None
    """Pearson correlation of x·u and x̂·u over windows, at position 0; None if either does not vary."""
    pearson: float | None
    """The same over tokens at positions ≥ 1, without end-of-text tokens."""
    variance_share: float
    """uᵀ C u / tr C, with C the covariance of x at positions ≥ 1 on the training text."""
    variance_share_with_pos0: float
    """The same with the covariance over all positions."""
    pos0_cosine: float
    """Cosine with the mean activation at position 0."""
    kl: float
    """Mean KL(clean ‖ resampled) over the tokens that were resampled, in nats."""
    kl_standard_error: float
    """Over windows."""
    variance_removed: float
    """½ E[(x_π·u − x·u)²] over these tokens: the variance of x·u under a random permutation, in squared activation units."""
    kl_per_variance: float | None
    """`kl` / `variance_removed`; None if x·u does not vary. If the effect is small and of second order, it is uᵀ F̄ u."""
    kl_per_variance_standard_error: float | None
    """Over windows."""
    fisher_share: float
    """uᵀ F̄ u / tr F̄."""
    fisher_relative: float
    """d times that: 1 for the average direction."""


class _Projections:
    """Σa, Σb, Σa², Σb² and Σab of the projections a = x·u and b = x̂·u, about the means of the first batch, in float64."""

    def __init__(self) -> None:
        self._n = 0
        self._shift: tuple[Tensor, Tensor] | None = None
        self._sums: Tensor | float = 0.0

    def add(self, a: Float[Tensor, "tokens n"], b: Float[Tensor, "tokens n"]) -> None:
        self._shift = self._shift or (a.mean(0), b.mean(0))
        self._n += len(a)
        a, b = a - self._shift[0], b - self._shift[1]
        self._sums = self._sums + torch.stack([v.sum(0) for v in (a, b, a * a, b * b, a * b)])

    def pearson(self) -> list[float | None]:
        """Return the correlation for each direction; None if a or b does not vary, up to rounding of float32."""
        assert self._shift is not None
        assert isinstance(self._sums, Tensor)
        mean_a, mean_b, aa, bb, ab = self._sums / self._n
        covariance, variances = ab - mean_a * mean_b, (aa - mean_a**2, bb - mean_b**2)
        varies = torch.ones_like(covariance, dtype=torch.bool)
        for variance, mean, shift in zip(variances, (mean_a, mean_b), self._shift, strict=True):
            varies &= variance > MIN_VARIANCE_SHARE * (mean + shift) ** 2
        r = covariance / torch.where(varies, variances[0] * variances[1], 1.0).sqrt()
        return [float(value) if defined else None for value, defined in zip(r, varies, strict=True)]


class DirectionSums:
    """Accumulates what the rows need over batches.

    Args:
        vectors: the unit directions, in float64 on the CPU.
    """

    def __init__(self, vectors: Float[Tensor, "n d"]) -> None:
        self._vectors = vectors
        self._first, self._rest = _Projections(), _Projections()
        self._kl: list[list[np.ndarray]] = [[] for _ in vectors]
        self._variance: list[list[np.ndarray]] = [[] for _ in vectors]
        self._counts: list[np.ndarray] = []

    def add_batch(
        self,
        x: Float[Tensor, "batch pos d"],
        x_hat: Float[Tensor, "batch pos d"],
        counted: Bool[Tensor, "batch pos"],
    ) -> None:
        """Add a batch of activations and reconstructions; `counted` are the tokens, none at position 0, that the rows are about."""
        a, b = (values.cpu().double() @ self._vectors.T for values in (x, x_hat))
        kept = counted.cpu()
        self._first.add(a[:, 0], b[:, 0])
        self._rest.add(a[kept], b[kept])
        self._counts.append(kept.sum(1).double().numpy())

    def add_effect(self, k: int, kl: Float[Tensor, "batch pos"], change: Float[Tensor, "batch pos"]) -> None:
        """Add the KL of one direction on a batch, and by how much x·u was changed; both are zero where a token is not counted."""
        self._kl[k].append(kl.cpu().double().sum(1).numpy())
        self._variance[k].append(0.5 * change.cpu().double().square().sum(1).numpy())

    def rows(
        self,
        names: tuple[str, ...],
        covariance: Float[Tensor, "d d"],
        covariance_with_pos0: Float[Tensor, "d d"],
        pos0_mean: Float[Tensor, "d"],
        fisher: Fisher,
    ) -> tuple[DirectionRow, ...]:
        """Return the row of each direction."""
        shares, with_pos0, read = (
            _shares(self._vectors, matrix) for matrix in (covariance, covariance_with_pos0, fisher.matrix)
        )
        cosines = (self._vectors @ pos0_mean).tolist()
        counts = np.concatenate(self._counts)
        pearson_pos0, pearson = self._first.pearson(), self._rest.pearson()
        rows = []
        for k, name in enumerate(names):
            kl, variance = np.concatenate(self._kl[k]), np.concatenate(self._variance[k])
            mean, per_variance = ratio_of_sums(kl, counts), ratio_of_sums(kl, variance)
            assert mean is not None, "no token was counted"
            rows.append(
                DirectionRow(
                    name, pearson_pos0[k], pearson[k], shares[k], with_pos0[k], cosines[k], mean.value, mean.standard_error,
                    float(variance.sum() / counts.sum()),
                    None if per_variance is None else per_variance.value,
                    None if per_variance is None else per_variance.standard_error,
                    read[k], read[k] * self._vectors.shape[1],
                )
            )  # fmt: skip
        return tuple(rows)


def _shares(vectors: Float[Tensor, "n d"], matrix: Float[Tensor, "d d"]) -> list[float]:
    """Return uᵀ M u / tr M for each direction."""
    return (((vectors @ matrix) * vectors).sum(1) / matrix.trace()).tolist()
