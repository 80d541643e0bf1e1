"""What the neurons of a toy model stand for, where the basis is privileged: W's rows are neurons, its columns features.

Elhage et al. 2209.10652, "Superposition in a Privileged Basis" and "Computation in Superposition".
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WIRED = 0.35
"""A weight connects neuron and feature where it is above this share of the largest."""


class Circuit(NamedTuple):
    """Features and neurons that hang together by weights; no weight leads out of it."""

    features: tuple[int, ...]
    neurons: tuple[int, ...]

    def __str__(self) -> str:
        neurons = len(self.neurons)
        return f"{len(self.features)} in {neurons}"


def monosemanticity(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m"]:
    """max_i W_ji² / Σ_i W_ji², the largest feature's share of a neuron: 1 for a neuron of one feature, 0 for a dead one."""
    squares = W.double().square()
    total = squares.sum(-1)
    return torch.where(total > 0, squares.amax(-1) / torch.where(total > 0, total, 1), 0).to(W.dtype)


def wired(W: Float[Tensor, "m n"], *, least: float) -> Bool[Tensor, "m n"]:
    """Which features a neuron stands for: W_ji > least · max W. Negative weights only inhibit, where features are positive."""
    return (W / W.max().clamp(min=1e-30)) > least


def circuits(wires: Bool[Tensor, "m n"]) -> tuple[Circuit, ...]:
    """Connected components of the graph of neurons and features, by their first features; dead ones of both belong to none."""
    found, free = [], wires.any(0)
    for feature in range(wires.shape[1]):
        if free[feature]:
            features = torch.zeros_like(free)
            features[feature] = True
            while True:
                neurons = wires[:, features].any(1)
                reached = wires[neurons].any(0)
                if bool((reached == features).all()):
                    break
                features = reached
            free &= ~features
            found.append(Circuit(tuple(features.nonzero()[:, 0].tolist()), tuple(neurons.nonzero()[:, 0].tolist())))
    return tuple(found)


def pairs(wires: Bool[Tensor, "m n"]) -> int:
    """How many different pairs of neurons there are that a feature has to itself: those it is wired to are these two."""
    found = {tuple(neurons.nonzero()[:, 0].tolist()) for neurons in wires.mT if int(neurons.sum()) == 2}
    return len(found)


def most_monosemantic_first(W: Float[Tensor, "m n"]) -> list[int]:
    """The neurons by monosemanticity, those alike to a hundredth by their largest feature; dead ones last."""
    shares, features = monosemanticity(W).tolist(), W.abs().argmax(1).tolist()
    return sorted(range(len(W)), key=lambda j: (-round(shares[j], 2), features[j]))
