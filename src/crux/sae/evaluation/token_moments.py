"""First and second moments of vectors over tokens, accumulated in float64."""

import torch
from jaxtyping import Float
from torch import Tensor


class TokenMoments:
    """Accumulates n, Σv and Σvvᵀ over tokens; memory does not depend on their number.

    The sums are float64, on the device of the vectors if it has float64 and otherwise on the CPU.
    """

    def __init__(self) -> None:
        self.n = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, values: Float[Tensor, "tokens d"]) -> None:
        """Add the vectors of some tokens."""
        values = values.detach().cpu().double() if values.device.type == "mps" else values.detach().double()
        self.n += len(values)
        total, products = values.sum(0), values.T @ values
        self._sum = total if self._sum is None else self._sum + total
        self._products = products if self._products is None else self._products + products

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """The mean vector."""
        assert self._sum is not None, "no vectors have been added"
        return self._sum / self.n

    @property
    def second_moment(self) -> Float[Tensor, "d d"]:
        """The uncentred second moment E[v vᵀ]."""
        assert self._products is not None, "no vectors have been added"
        return self._products / self.n

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """The covariance E[v vᵀ] − E[v] E[v]ᵀ, with the number of tokens in the denominator."""
        return self.second_moment - torch.outer(self.mean, self.mean)


def covariance_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """Return a matrix R with R Rᵀ = covariance, so that R z has this covariance for z ~ N(0, 1); float64 in and out."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp_min(0).sqrt()
