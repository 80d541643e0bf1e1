"""The features that the neurons of a toy model stand for, in models with a privileged basis.

The rows of W are neurons, its columns features. Elhage et al. 2209.10652, "Superposition in a Privileged Basis" and "Computation
in Superposition".
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MIN_CONNECTION = 0.35
"""A neuron and a feature are connected if their weight is above this share of the largest weight."""


class Circuit(NamedTuple):
    """Features and neurons that are connected by weights, directly or through each other; no weight leads out of the circuit."""

    features: tuple[int, ...]
    neurons: tuple[int, ...]

    def __str__(self) -> str:
        neurons = len(self.neurons)
        return f"{len(self.features)} in {neurons}"


def monosemanticity(W: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m"]:
    """Return max_i W_ji² / Σ_i W_ji², the share of a neuron's largest feature: 1 for a neuron of one feature, 0 for a dead neuron."""
    squares = W.double().square()
    total = squares.sum(-1)
    return torch.where(total > 0, squares.amax(-1) / torch.where(total > 0, total, 1), 0).to(W.dtype)


def find_connections(W: Float[Tensor, "m n"], *, min_weight: float) -> Bool[Tensor, "m n"]:
    """Return True for a neuron j and a feature i that are connected: W_ji > min_weight · max W.

    Negative weights only inhibit if features are positive, and do not count.
    """
    return (W / W.max().clamp(min=1e-30)) > min_weight


def find_circuits(connections: Bool[Tensor, "m n"]) -> tuple[Circuit, ...]:
    """Return the connected components of the graph of neurons and features, ordered by their first feature.

    Dead neurons and features without a connection are in no circuit.
    """
    circuits, unassigned = [], connections.any(0)
    for feature in range(connections.shape[1]):
        if unassigned[feature]:
            features = torch.zeros_like(unassigned)
            features[feature] = True
            while True:
                neurons = connections[:, features].any(1)
                connected = connections[neurons].any(0)
                if bool((connected == features).all()):
                    break
                features = connected
            unassigned &= ~features
            circuits.append(Circuit(tuple(features.nonzero()[:, 0].tolist()), tuple(neurons.nonzero()[:, 0].tolist())))
    return tuple(circuits)


def count_neuron_pairs(connections: Bool[Tensor, "m n"]) -> int:
    """Count the distinct pairs of neurons that are the only neurons to which some feature is connected."""
    return len({tuple(neurons.nonzero()[:, 0].tolist()) for neurons in connections.mT if int(neurons.sum()) == 2})


def order_by_monosemanticity(W: Float[Tensor, "m n"]) -> list[int]:
    """Return the neurons, the most monosemantic first and dead ones last.

    Neurons whose monosemanticity agrees to two decimals are ordered by their largest feature.
    """
    shares, features = monosemanticity(W).tolist(), W.abs().argmax(1).tolist()
    return sorted(range(len(W)), key=lambda j: (-round(shares[j], 2), features[j]))
