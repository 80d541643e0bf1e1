"""The choice of latents of another dictionary that fire about as often as given ones."""

import numpy as np
from jaxtyping import Float, Int


def match_densities(wanted: Float[np.ndarray, "n"], available: Float[np.ndarray, "m"], /) -> Int[np.ndarray, "n"]:
    """Return for each wanted density the place of the available one that stands for it, one to one.

    The sum of |log(wanted / available)| is the least possible. Available densities of 0 are left out; if there are fewer others than
    wanted, each is used as often as necessary. The optimal pairs of two ordered lists are in order, so they are found by dynamic
    programming: `D[i, j]`, the least sum for the first i wanted among the first j available, is min(D[i, j−1], D[i−1, j−1] + cost).

    Raises:
        ValueError: if there is no available density above 0, or a wanted one is not above 0.
    """
    alive = np.flatnonzero(available > 0)
    if len(wanted) == 0:
        return np.zeros(0, np.int64)
    if len(alive) == 0 or not (wanted > 0).all():
        raise ValueError("densities above 0 are needed on both sides")
    alive = np.repeat(alive, -(-len(wanted) // len(alive)))
    ours = np.argsort(wanted, kind="stable")
    theirs = alive[np.argsort(available[alive], kind="stable")]
    a, b = np.log(wanted[ours]), np.log(available[theirs])
    spare = len(b) - len(a)  # wanted i can only be paired with the available i … i + spare
    best, taken = np.zeros(spare + 1), np.empty((len(a), spare + 1), bool)
    for i in range(len(a)):
        with_i = best + np.abs(b[i : i + spare + 1] - a[i])
        best = np.minimum.accumulate(with_i)
        taken[i, 0], taken[i, 1:] = True, with_i[1:] < best[:-1]
    pairs, j = np.empty(len(a), np.int64), spare
    for i in range(len(a) - 1, -1, -1):
        j -= int(np.argmax(taken[i, j::-1]))  # the last place at which taking i improved the sum
        pairs[ours[i]] = theirs[i + j]
    return pairs
