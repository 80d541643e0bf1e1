"""Find the exact local optima of a small ReLU-output toy model by L-BFGS from structured and from random starts.

A structured start is an arrangement of the kind that superposition is known to build (docs/reference/toy_models.md §4.5). Each hidden
dimension is empty, dedicated to one feature, or shared by an antipodal pair (a digon); two dimensions may instead hold a
regular k-gon. The remaining features are dead (W_i = 0, b_i = E x_i). Features of equal importance and density are
interchangeable: arrangements that differ only by such a swap are tried once. A little noise is added to every start, so that
L-BFGS can leave a saddle point.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.activity import enumerate_independent
from crux.toy.exact.lbfgs import minimise
from crux.toy.exact.loss import tied_loss

START_NOISE = 1e-3
"""Standard deviation of the noise that is added to every structured start."""

SAME_LOSS, SAME_SHAPE = 1e-7, 1e-3
"""Two results are the same optimum if their losses agree to the first (relative) and sorted norms and biases to the second."""

Arrangement = tuple[tuple[int, ...], ...]
"""The features of every structure: one (dedicated), two (digon), three or more (k-gon)."""


class Optima(NamedTuple):
    """Distinct local optima, the best first."""

    W: Float[Tensor, "optima n_hidden n_features"]
    b: Float[Tensor, "optima n_features"]
    loss: Float[Tensor, "optima"]
    """Σ_i I_i E(x_i − x'_i)²"""
    gradient: Float[Tensor, "optima"]
    """max |∂loss|: how precisely each optimum was reached"""
    starts: list[str]
    """The first start that led to each optimum: `5-gon 0 1 2 3 4`, `digon 0 1 + digon 2 3`, `random`, …"""


def _generate_arrangements(features: tuple[int, ...], n_dims: int) -> Iterator[Arrangement]:
    """Yield the ways to fill exactly n_dims dimensions with dedicated features, digons and at most one k-gon, each way once."""
    if n_dims == 0:
        yield ()
        return
    for i, first in enumerate(features):  # structures in the order of their lowest feature, so that none is repeated
        rest = features[i + 1 :]
        for size in range(1, len(features) - i + 1):
            dims_of_structure = 2 if size > 2 else 1  # a k-gon takes two dimensions
            if dims_of_structure > n_dims:
                continue
            for others in combinations(rest, size - 1):
                structure = (first, *others)
                left = tuple(f for f in rest if f not in others)
                for more in _generate_arrangements(left, n_dims - dims_of_structure):
                    if sum(len(part) > 2 for part in (structure, *more)) <= 1:
                        yield (structure, *more)


def distinct_arrangements(kinds: list[int], n_hidden: int) -> list[Arrangement]:
    """Return the arrangements of features; of those that differ only by swaps of features of the same kind, only the first.

    Args:
        kinds: the kind of each feature; features of the same kind are interchangeable.
    """
    by_kinds: dict[tuple, Arrangement] = {}  # the first arrangement with these kinds of features in its structures
    for n_dims in range(1, min(n_hidden, len(kinds)) + 1):
        for parts in _generate_arrangements(tuple(range(len(kinds))), n_dims):
            kinds_of_parts = tuple(sorted(tuple(sorted(kinds[f] for f in part)) for part in parts))
            by_kinds.setdefault(kinds_of_parts, parts)
    return list(by_kinds.values())


def build_start(
    parts: Arrangement, *, n_hidden: int, mean: Float[Tensor, "n_features"]
) -> tuple[Float[Tensor, "n_hidden n_features"], Float[Tensor, "n_features"]]:
    """Return W and b of an arrangement: unit columns and b = 0 for the features in it, W_i = 0 and b_i = E x_i for the dead ones."""
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


def _name_arrangement(parts: Arrangement) -> str:
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
    """Return the distinct local optima of n_features → n_hidden for independent features, n_features up to about 8.

    L = Σ_i I_i E(x_i − ReLU(WᵀW x + b)_i)² is minimised from every structured start and from `n_random` random ones, whose columns
    have entries of variance 1/n_hidden, with b = 0. Results with a gradient above 1e-6 are left out.
    """
    n = len(importance)
    types = list(zip(importance.tolist(), density.tolist(), strict=True))
    kinds = [types.index(t) for t in types]
    arranged = distinct_arrangements(kinds, n_hidden)
    mean = density * (0.0 if signed else 0.5)
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=importance.dtype).to(importance.device)

    starts = [build_start(parts, n_hidden=n_hidden, mean=mean) for parts in arranged]
    W = torch.stack([w for w, _ in starts]) + START_NOISE * noise(len(starts), n_hidden, n)
    b = torch.stack([bias for _, bias in starts]) + START_NOISE * noise(len(starts), n)
    W = torch.cat([W, noise(n_random, n_hidden, n) / math.sqrt(n_hidden)])
    b = torch.cat([b, b.new_zeros(n_random, n)])
    activity = enumerate_independent(density)
    ends = minimise(
        lambda parameters, which: tied_loss(*parameters, importance=importance, activity=activity, signed=signed),
        (W, b),
        max_iterations=max_iterations,
        gradient_tolerance=gradient_tolerance,
        history=20,
    )
    names = [_name_arrangement(parts) for parts in arranged] + ["random"] * n_random

    # features of one kind may be swapped: compare norms and biases after sorting them within each kind
    W, b = ends.parameters
    norms = W.norm(dim=1)
    biases = torch.where(norms > SAME_SHAPE, b, b.relu())  # a negative bias of a dead feature has no effect
    kind = torch.tensor(kinds, device=b.device)
    shape = torch.cat([part[:, kind == k].sort(1).values for k in sorted(set(kinds)) for part in (norms, biases)], 1)
    chosen: list[int] = []
    for i in ends.loss.argsort().tolist():
        same_loss = (ends.loss[chosen] - ends.loss[i]).abs() <= SAME_LOSS * ends.loss[i].abs()
        same = same_loss & ((shape[chosen] - shape[i]).abs().amax(1) <= SAME_SHAPE)
        if ends.gradient[i] <= 1e-6 and not same.any():
            chosen.append(i)
    return Optima(W[chosen], b[chosen], ends.loss[chosen], ends.gradient[chosen], [names[i] for i in chosen])
