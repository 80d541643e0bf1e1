"""Analyse neurons whose input and output weights differ: computing |x| in superposition (Elhage et al. 2209.10652).

Neuron j reads feature i with weight W_ji and writes to it with weight V_ij = W_out_ij. Its scale is arbitrary, because a ReLU neuron
is linear in W_j at positive scales. Here both sides get the same norm, which changes no output.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

DEAD = 0.05
"""A neuron is dead if the norm of its weights is below this share of the largest neuron's."""
LOPSIDED = 4.0
"""Interference is asymmetric if it is this many times stronger in one direction; it is 16 times in the paper's example."""


def balance_weights(
    W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"]
) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n m"]]:
    """Return weights of the same function with ‖W_j‖ = ‖W_out_j‖ for every neuron.

    A neuron without weights on one side gets none on the other.
    """
    reads, writes = W.norm(dim=1), W_out.norm(dim=0)
    scale = torch.where((reads > 0) & (writes > 0), (writes / reads.clamp(min=1e-30)).sqrt(), 0)
    return W * scale[:, None], torch.where(scale > 0, W_out / scale.clamp(min=1e-30), 0)


def features_per_neuron(W: Float[Tensor, "m n"], *, least: float) -> list[list[int]]:
    """Return the features that each neuron reads, the largest weight first; none for a dead neuron.

    Neuron j reads feature i if |W_ji| > least · max_i |W_ji|.
    """
    length = W.norm(dim=1)
    features = []
    for row, alive in zip(W.abs(), (length > DEAD * length.max()).tolist(), strict=True):
        order = row.argsort(descending=True)
        features.append(order[row[order] > least * row.max()].tolist() if alive else [])
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
    """Amount that the strongest inhibitor subtracts from it."""


def find_motifs(W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"], *, least: float) -> list[Motif]:
    """Find every instance of the motif.

    The gains of both features must be above `least`, the interference asymmetric, and at least half of it inhibited.
    """
    m, n = W.shape
    gain = W.abs() * W_out.mT  # [m, n]: amount of |x_i| that neuron j returns to feature i
    motifs = []
    for j in range(m):
        both = [i for i in range(n) if gain[j, i] > least]
        for loud in both:
            for quiet in both:
                strong, weak = W[j, loud].abs() * W_out[quiet, j], W[j, quiet].abs() * W_out[loud, j]
                if loud == quiet or not strong > LOPSIDED * weak:
                    continue
                fires_too = (W[:, loud] * W[j, loud]) > 0  # fires when neuron j fires for `loud`
                inhibition = torch.where(fires_too, -W[:, loud].abs() * W_out[quiet], 0)
                inhibitor = int(inhibition.argmax())
                if inhibition[inhibitor] > strong / 2:
                    motifs.append(Motif(j, loud, quiet, float(strong), inhibitor, float(inhibition[inhibitor])))
    return motifs
