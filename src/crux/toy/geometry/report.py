"""The geometry report of one toy model: the shapes that its features form, and the share of a dimension that each feature has."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.toy.geometry.dimensionality import column_rank, dimensionality, dimensions_per_feature, norms
from crux.toy.geometry.tegum import Factor, tegum_factors

RANK_TOLERANCE = 1e-6
"""Tolerance per dimension of the check Σ D_i ≤ rank W, for rounding errors."""

MAX_FACTORS_LISTED, MAX_MEMBERS_LISTED = 6, 10
"""Numbers of factors of one shape, and of features of one factor, that the table lists."""


class Thresholds(TypedDict):
    """The thresholds of `geometry_report`; `tegum_factors` explains them."""

    living: float
    tau: float
    tolerance: float


THRESHOLDS = Thresholds(living=0.1, tau=0.15, tolerance=0.15)
"""Suitable for trained weights, which carry some noise."""


class Geometry(NamedTuple):
    """The result of `geometry_report`. `str()` gives text and a table in Markdown, `as_dict()` plain values for JSON."""

    n_hidden: int
    n_features: int
    living: tuple[int, ...]
    """Features that are represented: their norm is above the threshold. Ascending."""
    factors: tuple[Factor, ...]
    names: dict[str, int]
    """Number of factors by name, the most frequent first."""
    norms: Float[Tensor, "n_features"]
    dimensionality: Float[Tensor, "n_features"]
    """D_i of all features, including dead ones."""
    total: float
    """Σ D_i."""
    rank: int
    """Numerical rank of W."""
    dimensions_per_feature: float
    """D* = m / ‖W‖_F²."""
    unused: float
    """rank − Σ D_i: zero if each factor is a tight frame."""
    lawful: bool
    """True if Σ D_i ≤ rank W ≤ m up to rounding. This is a theorem: False means a defect in this code or non-finite numbers."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dictionaries; an infinite D* (W = 0) becomes None, because JSON has no infinity."""
        plain = {
            key: value.tolist() if isinstance(value, Tensor) else value
            for key, value in self._asdict().items()
            if key not in ("factors", "living")
        }
        factors = [factor._asdict() | {"features": list(factor.features)} for factor in self.factors]
        d_star = self.dimensions_per_feature if math.isfinite(self.dimensions_per_feature) else None
        return plain | {"living": list(self.living), "factors": factors, "dimensions_per_feature": d_star}

    def __str__(self) -> str:
        law = "as it must be" if self.lawful else "which is WRONG: it cannot exceed the rank"
        lines = [
            f"{self.n_features} features in {self.n_hidden} dimensions, {len(self.living)} of them represented.",
            f"W has rank {self.rank}. The dimensionalities sum to Σ D_i = {self.total:.4f} ≤ {self.rank}, {law};",
            f"the rest, {self.unused:.4f}, is not used. D* = {self.dimensions_per_feature:.4f} dimensions per represented feature.",
        ]
        if self.factors:
            header = ["shape", "count", "features", "rank", "Σ D_i", "D_i", "members"]
            lines += ["", markdown_table(header, [self._row(name) for name in self.names])]
        return "\n".join(lines)

    def _row(self, name: str) -> list[object]:
        """Return the cells of the table for all factors of one shape."""
        factors = [factor for factor in self.factors if factor.name == name]
        features = [i for factor in factors for i in factor.features]
        shares = self.dimensionality[features]
        low, high = f"{shares.min():.3f}", f"{shares.max():.3f}"
        groups = [f"({_join_numbers(factor.features)})" for factor in factors[:MAX_FACTORS_LISTED]]
        if len(factors) > MAX_FACTORS_LISTED:
            groups.append("…")
        return [
            name,
            len(factors),
            len(features),
            sum(factor.rank for factor in factors),
            f"{sum(factor.dimensions for factor in factors):.3f}",
            low if low == high else f"{low}–{high}",
            " ".join(groups),
        ]


def geometry_report(
    W: Float[Tensor, "n_hidden n_features"], *, living: float, tau: float, tolerance: float
) -> Geometry:
    """Describe the geometry of one weight matrix; the thresholds are those of `tegum_factors`.

    Raises:
        UserError: if W has an entry that is not finite.
    """
    if not W.isfinite().all():
        raise UserError("the weights contain values that are not finite, so that they have no geometry")
    W = W.detach().cpu()
    factors = tegum_factors(W, living=living, tau=tau, tolerance=tolerance)
    D, (m, n) = dimensionality(W), W.shape
    total, rank = float(D.double().sum()), int(column_rank(W))
    return Geometry(
        n_hidden=m,
        n_features=n,
        living=tuple(sorted(i for factor in factors for i in factor.features)),
        factors=factors,
        names=dict(Counter(factor.name for factor in factors).most_common()),
        norms=norms(W),
        dimensionality=D,
        total=total,
        rank=rank,
        dimensions_per_feature=float(dimensions_per_feature(W)),
        unused=rank - total,
        lawful=total <= rank + RANK_TOLERANCE * m and rank <= m,
    )


def orient_canonically(
    W: Float[Tensor, "n_hidden n_features"], *, living: float
) -> Float[Tensor, "n_hidden n_features"]:
    """Rotate and reflect W into a canonical orientation, so that pictures of two models can be compared.

    The result is Q W with Q orthogonal, the same for any rotation of W. The first living feature points along +x. The next feature that is
    not on its line has a positive y, the next that is not in their plane a positive z, and so on (Gram–Schmidt). A feature leaves the
    span of the earlier ones if more than a tenth of it is orthogonal to the span; if there is no such feature, more than
    rounding suffices. Features below `living` × the largest norm only choose axes that no other feature chooses.
    """
    W64 = W.detach().double()
    residual, axes = W64.clone(), []
    length = W64.norm(dim=0)
    alive = length > living * length.max()
    # (features that may choose an axis, share of their norm that must be outside the span of the axes so far), by precedence
    for candidates, min_share in ((alive, 0.1), (alive, 1e-5), (length > 0, 1e-5)):
        while (outside := candidates & (residual.norm(dim=0) > min_share * length)).any() and len(axes) < len(W):
            axis = residual[:, int(torch.nonzero(outside)[0])]
            axes.append(axis / axis.norm())
            residual = residual - torch.outer(axes[-1], axes[-1] @ residual)
    if not axes:
        return W.detach().clone()
    Q, R = torch.linalg.qr(torch.stack(axes, dim=1), mode="complete")  # no feature extends along the remaining axes
    signs = torch.ones(len(W), dtype=torch.float64, device=W.device)
    signs[: len(axes)] = R.diagonal().sign()
    return ((Q * signs).T @ W64).to(W.dtype)


def _join_numbers(features: Sequence[int]) -> str:
    listed = " ".join(map(str, features[:MAX_MEMBERS_LISTED]))
    n_more = len(features) - MAX_MEMBERS_LISTED
    return f"{listed} … {n_more} more" if n_more > 0 else listed
