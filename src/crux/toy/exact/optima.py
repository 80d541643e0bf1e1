"""The exact local optima of a small ReLU-output toy model: structured starts and random ones, each polished by L-BFGS.

Structures are what superposition is known to build (docs/reference/toy_models.md §4.5): every hidden dimension empty, kept for one
feature, or shared by an antipodal pair (a digon); in place of two dimensions also a regular k-gon; the features left over are
dead (W_i = 0, b_i = E x_i). Features of equal importance and density are interchangeable: of arrangements that differ by such
a swap, one is tried. Every start is shaken a little, so that a saddle point is left.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.activity import independent
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.loss import tied_loss

SHAKE = 1e-3
"""Standard deviation of what is added to every structured start."""

SAME_LOSS, SAME_SHAPE = 1e-7, 1e-3
"""Two ends are one optimum where their losses agree to the first (relative), sorted norms and biases to the second."""

Parts = tuple[tuple[int, ...], ...]
"""The features of every structure: one (dedicated), two (digon), three and more (k-gon)."""


class Optima(NamedTuple):
    """Distinct local optima, the best first."""

    W: Float[Tensor, "optima n_hidden n_features"]
    b: Float[Tensor, "optima n_features"]
    loss: Float[Tensor, "optima"]
    """Σ_i I_i E(x_i − x'_i)²"""
    gradient: Float[Tensor, "optima"]
    """max |∂loss|: how well each was polished"""
    found: list[str]
    """The first start that led there: `5-gon`, `digon 0 1 + digon 2 3`, `random`, …"""


def _arrangements(features: tuple[int, ...], n_dims: int) -> Iterator[Parts]:
    """Ways to fill n_dims with dedicated features, digons and at most one k-gon; unordered, dimensions all used."""
    if n_dims == 0:
        yield ()
        return
    for i, first in enumerate(features):  # structures in the order of their lowest feature, so that none comes twice
        rest = features[i + 1 :]
        for size in range(1, len(features) - i + 1):
            if 1 + (size > 2) > n_dims:
                continue
            for others in combinations(rest, size - 1):
                left = tuple(f for f in rest if f not in others)
                for more in _arrangements(left, n_dims - 1 - (size > 2)):
                    if sum(len(part) > 2 for part in ((first, *others), *more)) <= 1:
                        yield ((first, *others), *more)


def structures(kinds: list[int], n_hidden: int) -> list[Parts]:
    """The arrangements of the features, those equal up to a swap of features of one kind once."""
    seen: dict[tuple, Parts] = {}
    for n_dims in range(1, min(n_hidden, len(kinds)) + 1):
        for parts in _arrangements(tuple(range(len(kinds))), n_dims):
            seen.setdefault(tuple(sorted(tuple(sorted(kinds[f] for f in part)) for part in parts)), parts)
    return list(seen.values())


def start_of(
    parts: Parts, *, n_hidden: int, mean: Float[Tensor, "n_features"]
) -> tuple[Float[Tensor, "n_hidden n_features"], Float[Tensor, "n_features"]]:
    """W and b of an arrangement: unit columns, b = 0; b = E x of the dead features."""
    W, b, dim = mean.new_zeros(n_hidden, len(mean)), mean.clone(), 0
    for part in parts:
        if len(part) <= 2:
            for feature, sign in zip(part, (1, -1), strict=False):
                W[dim, feature] = sign
        else:
            angle = 2 * math.pi * torch.arange(len(part)).to(mean) / len(part)
            W[dim, list(part)], W[dim + 1, list(part)] = angle.cos(), angle.sin()
        b[list(part)] = 0
        dim += 1 + (len(part) > 2)
    return W, b


def _name(parts: Parts) -> str:
    words = {1: "dedicated", 2: "digon"}
    return " + ".join(" ".join([words.get(len(part), f"{len(part)}-gon"), *map(str, part)]) for part in parts)


def exact_optima(
    *,
    n_hidden: int,
    importance: Float[Tensor, "n_features"],
    density: Float[Tensor, "n_features"],
    signed: bool,
    n_random: int,
    seed: int,
    max_iterations: int,
    gradient_tolerance: float,
) -> Optima:
    """The distinct local optima of n_features → n_hidden for independent features that the starts lead to; n_features up to about 8.

    `n_random` restarts: columns with entries of variance 1/n_hidden, b = 0. Ends that kept a gradient above 1e-6 are left out.
    """
    n = len(importance)
    types = list(zip(importance.tolist(), density.tolist(), strict=True))
    kinds = [types.index(t) for t in types]
    arranged = structures(kinds, n_hidden)
    mean = density * (0.0 if signed else 0.5)
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=importance.dtype).to(importance.device)

    starts = [start_of(parts, n_hidden=n_hidden, mean=mean) for parts in arranged]
    W = torch.stack([w for w, _ in starts]) + SHAKE * noise(len(starts), n_hidden, n)
    b = torch.stack([bias for _, bias in starts]) + SHAKE * noise(len(starts), n)
    W = torch.cat([W, noise(n_random, n_hidden, n) / math.sqrt(n_hidden)])
    b = torch.cat([b, b.new_zeros(n_random, n)])
    activity = independent(density)
    ends = minimise(
        lambda parameters, which: tied_loss(*parameters, importance=importance, activity=activity, signed=signed),
        (W, b),
        max_iterations=max_iterations,
        gradient_tolerance=gradient_tolerance,
        history=20,
    )
    names = [_name(parts) for parts in arranged] + ["random"] * n_random

    # features of one kind may be swapped: norms and biases are compared sorted within their kind
    W, b = ends.parameters
    norms = W.norm(dim=1)
    biases = torch.where(norms > SAME_SHAPE, b, b.relu())  # below zero a dead feature's bias does nothing
    kind = torch.tensor(kinds, device=b.device)
    shape = torch.cat([part[:, kind == k].sort(1).values for k in sorted(set(kinds)) for part in (norms, biases)], 1)
    chosen: list[int] = []
    for i in ends.loss.argsort().tolist():
        gap = (ends.loss[chosen] - ends.loss[i]).abs() <= SAME_LOSS * ends.loss[i].abs()
        same = gap & ((shape[chosen] - shape[i]).abs().amax(1) <= SAME_SHAPE)
        if ends.gradient[i] <= 1e-6 and not same.any():
            chosen.append(i)
    return Optima(W[chosen], b[chosen], ends.loss[chosen], ends.gradient[chosen], [names[i] for i in chosen])
