"""The geometry report of one toy model: which shapes its features form, and what share of a dimension each has."""

import math
from collections import Counter
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.toy.geometry.dimensionality import dimensionality, dimensions_per_feature, norms, rank
from crux.toy.geometry.tegum import Factor, tegum_factors

SLACK = 1e-6
"""By how much rounding may break the law, per dimension."""


class Thresholds(TypedDict):
    """The thresholds of `geometry_report`."""

    living: float
    tau: float
    tolerance: float


THRESHOLDS = Thresholds(living=0.1, tau=0.15, tolerance=0.15)
"""For trained weights, which carry some noise."""


class Geometry(NamedTuple):
    """What `geometry_report` found; `str()` is a table for people, `as_dict()` is for JSON."""

    n_hidden: int
    n_features: int
    living: tuple[int, ...]
    """Features whose norm is above the threshold, ascending."""
    factors: tuple[Factor, ...]
    names: dict[str, int]
    """Name of a factor → how many there are, the commonest first."""
    norms: Float[Tensor, "n_features"]
    dimensionality: Float[Tensor, "n_features"]
    """D_i, of all features, dead ones too."""
    total: float
    """Σ D_i."""
    rank: int
    """Numerical rank of W."""
    dimensions_per_feature: float
    """D* = m / ‖W‖_F²."""
    unused: float
    """rank − Σ D_i: zero where each factor is a tight frame."""
    lawful: bool
    """Σ D_i ≤ rank W ≤ m up to rounding. It is a theorem: False means numbers that are not finite, or a mistake in this code."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries; an infinite D* (W = 0) is None, for which JSON has a word."""
        plain = {
            key: value.tolist() if isinstance(value, Tensor) else value
            for key, value in self._asdict().items()
            if key not in ("factors", "living")
        }
        factors = [factor._asdict() | {"features": list(factor.features)} for factor in self.factors]
        spread = self.dimensions_per_feature if math.isfinite(self.dimensions_per_feature) else None
        return plain | {"living": list(self.living), "factors": factors, "dimensions_per_feature": spread}

    def __str__(self) -> str:
        law = "holds" if self.lawful else "BROKEN"
        lines = [
            f"{self.n_features} features in {self.n_hidden} dimensions, {len(self.living)} living",
            f"Σ D_i = {self.total:.4f} ≤ rank {self.rank} ≤ {self.n_hidden}: {law}, {self.unused:.4f} unused; "
            f"D* = {self.dimensions_per_feature:.4f}",
        ]
        if self.factors:
            width = max(len("shape"), *map(len, self.names))
            lines.append(f"{'shape':{width}}  count  features  rank    Σ D_i  D_i            members")
            lines += [self._line(name, width) for name in self.names]
        return "\n".join(lines)

    def _line(self, name: str, width: int) -> str:
        mine = [factor for factor in self.factors if factor.name == name]
        features = [i for factor in mine for i in factor.features]
        shares = self.dimensionality[features]
        low, high = f"{shares.min():.3f}", f"{shares.max():.3f}"
        range_ = low if low == high else f"{low}–{high}"
        groups = " ".join("(" + _listed([str(i) for i in factor.features], 10) + ")" for factor in mine[:6])
        return (
            f"{name:{width}}  {len(mine):5}  {len(features):8}  {sum(factor.rank for factor in mine):4}  "
            f"{sum(factor.dimensions for factor in mine):7.3f}  {range_:13}  {groups}{' …' if len(mine) > 6 else ''}"
        )


def geometry_report(
    W: Float[Tensor, "n_hidden n_features"], *, living: float, tau: float, tolerance: float
) -> Geometry:
    """The geometry of one weight matrix; thresholds as for `tegum_factors`.

    Raises:
        UserError: if W has an entry that is not finite.
    """
    if not W.isfinite().all():
        raise UserError("the weights hold values that are not finite: no geometry can be told")
    W = W.detach().cpu()
    factors = tegum_factors(W, living=living, tau=tau, tolerance=tolerance)
    D, (m, n) = dimensionality(W), W.shape
    total, spanned = float(D.double().sum()), int(rank(W))
    return Geometry(
        n_hidden=m,
        n_features=n,
        living=tuple(sorted(i for factor in factors for i in factor.features)),
        factors=factors,
        names=dict(Counter(factor.name for factor in factors).most_common()),
        norms=norms(W),
        dimensionality=D,
        total=total,
        rank=spanned,
        dimensions_per_feature=float(dimensions_per_feature(W)),
        unused=spanned - total,
        lawful=total <= spanned + SLACK * m and spanned <= m,
    )


def canonical(W: Float[Tensor, "n_hidden n_features"], *, living: float) -> Float[Tensor, "n_hidden n_features"]:
    """W turned and reflected so that pictures of two models compare: Q W with Q orthogonal, the same for any rotation of W.

    The first living feature points along +x; the next one that leaves its line has a positive y; the next that leaves their plane has a
    positive z, and so on (Gram–Schmidt). A feature leaves the span so far when more than a tenth of it points out of it, or, where no
    feature does, more than rounding. Features below `living` × the largest norm choose only axes that no other does.
    """
    W64 = W.detach().double()
    left, axes = W64.clone(), []
    length = W64.norm(dim=0)
    alive = length > living * length.max()
    for who, least in ((alive, 0.1), (alive, 1e-5), (length > 0, 1e-5)):
        while (out := who & (left.norm(dim=0) > least * length)).any() and len(axes) < len(W):
            axis = left[:, int(torch.nonzero(out)[0])]
            axes.append(axis / axis.norm())
            left = left - torch.outer(axes[-1], axes[-1] @ left)
    if not axes:
        return W.detach().clone()
    Q, R = torch.linalg.qr(torch.stack(axes, dim=1), mode="complete")  # the remaining axes meet no feature
    signs = torch.ones(len(W), dtype=torch.float64, device=W.device)
    signs[: len(axes)] = R.diagonal().sign()
    return ((Q * signs).T @ W64).to(W.dtype)


def _listed(words: list[str], most: int) -> str:
    return " ".join(words[:most]) + (f" … {len(words) - most} more" if len(words) > most else "")
