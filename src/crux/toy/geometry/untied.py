"""Neurons whose weights in and out differ: a computation such as |x| in superposition (Elhage et al. 2209.10652).

Neuron j reads W_ji of feature i and writes V_ij = W_out_ij to it. Its scale is free (h is linear in W_j above 0): here both sides get the
same norm, which changes no output.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

DEAD = 0.05
"""A neuron whose weights are below this share of the largest neuron's norm is dead."""
LOPSIDED = 4.0
"""Interference is asymmetric where it is so many times stronger one way; 16 in the paper's example."""


def balanced(W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n m"]]:
    """The same function with ‖W_j‖ = ‖W_out_j‖ for every neuron; one without weights on a side has none on the other."""
    reads, writes = W.norm(dim=1), W_out.norm(dim=0)
    scale = torch.where((reads > 0) & (writes > 0), (writes / reads.clamp(min=1e-30)).sqrt(), 0)
    return W * scale[:, None], torch.where(scale > 0, W_out / scale.clamp(min=1e-30), 0)


def features_of(W: Float[Tensor, "m n"], *, least: float) -> list[list[int]]:
    """The features that each neuron reads, the largest weight first: |W_ji| > least · its largest; none of a dead neuron."""
    length = W.norm(dim=1)
    found = []
    for row, alive in zip(W.abs(), (length > DEAD * length.max()).tolist(), strict=True):
        order = row.argsort(descending=True)
        found.append(order[row[order] > least * row.max()].tolist() if alive else [])
    return found


class Motif(NamedTuple):
    """Asymmetric superposition with inhibition: a neuron computes two features, and disturbs one of them strongly.

    In the paper's example it reads [2, −1/2] and writes [1/2, 2]: each feature gets |x|, but `loud` sends 4 |x| to `quiet`, and
    `quiet` only |x| / 4 to `loud`. The inhibitor fires with `loud` and takes from `quiet` what it should not have got.
    """

    neuron: int
    loud: int
    quiet: int
    interference: float
    """What `quiet` gets for each unit of `loud`."""
    inhibitor: int
    inhibition: float
    """What the inhibitor, the strongest one, takes of it."""


def motifs(W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"], *, least: float) -> list[Motif]:
    """The motif wherever it is: gains of both features above `least`, lopsided interference, at least half of it inhibited."""
    m, n = W.shape
    gain = W.abs() * W_out.mT  # [m, n]: what a feature gets of itself
    found = []
    for j in range(m):
        both = [i for i in range(n) if gain[j, i] > least]
        for loud in both:
            for quiet in both:
                strong, weak = W[j, loud].abs() * W_out[quiet, j], W[j, quiet].abs() * W_out[loud, j]
                if loud == quiet or not strong > LOPSIDED * weak:
                    continue
                same = (W[:, loud] * W[j, loud]) > 0  # fires when the neuron fires for `loud`
                taken = torch.where(same, -W[:, loud].abs() * W_out[quiet], 0)
                inhibitor = int(taken.argmax())
                if taken[inhibitor] > strong / 2:
                    found.append(Motif(j, loud, quiet, float(strong), inhibitor, float(taken[inhibitor])))
    return found
