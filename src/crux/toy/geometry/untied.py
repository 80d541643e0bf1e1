"""Analyse neurons whose input and output weights differ: computing |x| in superposition (Elhage et al. 2209.10652).

Neuron j reads feature i with weight W_ji and writes to it with weight W_out_ij. The scale of W_j is arbitrary: if W_j is multiplied by
a positive number and the neuron's output weights are divided by it, no output changes. `balance_weights` gives both the same norm.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

DEAD_BELOW = 0.05
"""A neuron is dead if the norm of its weights is below this share of the largest neuron's."""
MIN_ASYMMETRY = 4.0
"""Interference is asymmetric if it is this many times stronger in one direction; it is 16 times in the paper's example."""


def balance_weights(
    W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"]
) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n m"]]:
    """Return weights of the same function with ‖W_j‖ = ‖W_out_j‖ for every neuron.

    A neuron without input weights or without output weights gets neither.
    """
    norm_in, norm_out = W.norm(dim=1), W_out.norm(dim=0)
    scale = torch.where((norm_in > 0) & (norm_out > 0), (norm_out / norm_in.clamp(min=1e-30)).sqrt(), 0)
    return W * scale[:, None], torch.where(scale > 0, W_out / scale.clamp(min=1e-30), 0)


def features_per_neuron(W: Float[Tensor, "m n"], *, min_weight: float) -> list[list[int]]:
    """Return the features that each neuron reads, the largest weight first; none for a dead neuron.

    Neuron j reads feature i if |W_ji| > min_weight · max_k |W_jk|.
    """
    length = W.norm(dim=1)
    features = []
    for row, alive in zip(W.abs(), (length > DEAD_BELOW * length.max()).tolist(), strict=True):
        order = row.argsort(descending=True)
        features.append(order[row[order] > min_weight * row.max()].tolist() if alive else [])
    return features


class Motif(NamedTuple):
    """Asymmetric superposition with inhibition: a neuron computes two features and interferes strongly with one of them.

    In the paper's example the neuron reads [2, −1/2] and writes [1/2, 2]. Each feature gets its |x|, but `loud` also adds 4 |x| to
    `quiet`, whereas `quiet` adds only |x| / 4 to `loud`. The inhibitor fires with `loud` and subtracts the interference from `quiet`.
    """

    neuron: int
    loud: int
    quiet: int
    interference: float
    """Amount that is added to `quiet` per unit of `loud`."""
    inhibitor: int
    inhibition: float
    """Amount that `inhibitor` subtracts from `quiet` per unit of `loud`; of all neurons it subtracts most."""


def find_motifs(W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"], *, min_gain: float) -> list[Motif]:
    """Find every occurrence of the motif.

    Neuron j must return more than `min_gain` · |x_i| to the output of both features. The interference must be asymmetric, and more than
    half of it must be inhibited.
    """
    m, n = W.shape
    gain = W.abs() * W_out.mT  # [m, n]: amount of |x_i| that neuron j returns to feature i
    motifs = []
    for j in range(m):
        computed = [i for i in range(n) if gain[j, i] > min_gain]
        for loud in computed:
            for quiet in computed:
                strong, weak = W[j, loud].abs() * W_out[quiet, j], W[j, quiet].abs() * W_out[loud, j]
                if loud == quiet or not strong > MIN_ASYMMETRY * weak:
                    continue
                fires_too = (W[:, loud] * W[j, loud]) > 0  # fires when neuron j fires for `loud`
                inhibition = torch.where(fires_too, -W[:, loud].abs() * W_out[quiet], 0)
                inhibitor = int(inhibition.argmax())
                if inhibition[inhibitor] > strong / 2:
                    motifs.append(Motif(j, loud, quiet, float(strong), inhibitor, float(inhibition[inhibitor])))
    return motifs
