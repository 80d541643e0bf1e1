"""The part of an SAE's error that is a linear function of the activation, fitted on training documents.

Engels et al. 2410.14670 (§4) regress the error on the activation. Here the fit has a bias, the documents on which it is fitted and
used are disjoint, R² is pooled over dimensions, and position 0 is apart.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

RELATIVE_CUT = 1e-10
"""Directions of the activations whose variance is a smaller share of the largest one are rounding, and carry no coefficient."""


class LinearMap(NamedTuple):
    """The affine map y ≈ (x − mean_x) W + mean_y; float64."""

    W: Float[Tensor, "d_in d_y"]
    mean_x: Float[Tensor, "d_in"]
    mean_y: Float[Tensor, "d_y"]

    def predict(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_y"]:
        """Return the prediction in float32, computed in float64 where the device has it."""
        if x.device.type == "mps":
            return self._predict(x.cpu()).to(x.device)
        return self._predict(x)

    def _predict(self, x: Float[Tensor, "*tokens d_in"]) -> Float[Tensor, "*tokens d_y"]:
        W, mean_x, mean_y = (part.to(x.device) for part in self)
        return ((x.double() - mean_x) @ W + mean_y).float()


class LinearErrorPart(NamedTuple):
    """The linear part of an error: the least-squares prediction from x at positions ≥ 1, and the mean error at position 0.

    The activation at position 0 can be tens of times as long as the others. A fit of the other positions would extrapolate there, and a
    fit of all positions would be one of position 0.
    """

    rest: LinearMap
    pos0: Float[Tensor, "d_out"]
    """The mean error at position 0; float32."""

    def predict(self, read: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_out"]:
        """Return the linear part of the error at each token, given the activation that the SAE reads."""
        predicted = self.rest.predict(read)
        predicted[:, 0] = self.pos0.to(predicted)
        return predicted


def fit_linear_map(
    covariance: Float[Tensor, "d d"], mean: Float[Tensor, "d"], *, d_in: int, targets: slice
) -> LinearMap:
    """Solve the normal equations of least squares with a bias, from moments of the joint vectors [x, …].

    Args:
        covariance: of the joint vectors; the first `d_in` entries are x.
        targets: the entries that are predicted.
    """
    values, vectors = torch.linalg.eigh(covariance[:d_in, :d_in])
    kept = values > RELATIVE_CUT * values[-1].clamp_min(0)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    W = vectors @ (inverse[:, None] * (vectors.T @ covariance[:d_in, targets]))
    return LinearMap(W, mean[:d_in], mean[targets])
