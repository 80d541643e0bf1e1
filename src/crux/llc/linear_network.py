"""Deep linear networks around a w* whose redundant factors are zero, and an exact sampler of their posterior.

    L(W) = c ‖W_n … W_1 − T‖²,  c = 1 / ((n_in + 2) n_out): the population loss for inputs uniform in the unit ball, mean over outputs

With all layers but one fixed the posterior of that one is Gaussian: with A the product behind it and B the product before, its
entries are independent in the eigenbases of AᵀA and BBᵀ, with precision 2 nβ c a_i b_j + γ. Drawing each layer in turn (Gibbs) has
no step size to be wrong, and mixes in tens of sweeps where gradients need thousands of steps: the layers' scales are redrawn at once.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.progress import track
from crux.llc.diagnostics import ChainStatistics, chain_statistics
from crux.llc.losses import Batch, Loss
from crux.llc.noise import Use, generator


def layer_names(widths: Sequence[int]) -> list[str]:
    """Of the parameters, input first."""
    return [f"W{i + 1}" for i in range(len(widths) - 1)]


def scale(widths: Sequence[int]) -> float:
    """c"""
    return 1 / ((widths[0] + 2) * widths[-1])


def redundant_zero(widths: Sequence[int], rank: int) -> dict[str, Float[Tensor, "out in"]]:
    """w*: every layer is the identity on its first `rank` coordinates and zero elsewhere. So is the true map, T."""
    found = {}
    for name, n_in, n_out in zip(layer_names(widths), widths, widths[1:], strict=False):
        W = torch.zeros(n_out, n_in, dtype=torch.float64)
        W[:rank, :rank] = torch.eye(rank)
        found[name] = W
    return found


def product(layers: Sequence[Float[Tensor, "*row _out _in"]]) -> Float[Tensor, "*row _out _in"]:
    """W_n … W_1."""
    return reduce(lambda behind, layer: layer @ behind, layers)


def linear_loss_of(widths: Sequence[int], rank: int) -> Loss:
    """L of every chain."""
    names, c = layer_names(widths), scale(widths)
    truth = product(list(redundant_zero(widths, rank).values()))

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return c * (product([p[name] for name in names]) - truth.to(p[names[0]])).square().sum((-2, -1))

    return loss


def gibbs(
    widths: Sequence[int],
    rank: int,
    *,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    n_chains: int,
    burn_in: int,
    draws: int,
    seed: int,
) -> ChainStatistics:
    """nβ E[L] under exp(−nβ L − γ/2 ‖w − w*‖²): what every unbiased estimate converges to. γ must be more than 0."""
    loss, c = linear_loss_of(widths, rank), scale(widths)
    start = redundant_zero(widths, rank)
    names, truth = list(start), product(list(start.values()))
    rows = len(nbeta) * n_chains
    nb, pull = (v.double().repeat_interleave(n_chains)[:, None, None] for v in (nbeta, gamma))
    W = {name: value.expand(rows, -1, -1).clone() for name, value in start.items()}
    trace = []
    for sweep in track(range(burn_in + draws), "sampling exactly, by Gibbs"):
        rng = generator(seed, 0, Use.moves, sweep)
        for i, name in enumerate(names):
            behind, before = [W[n] for n in names[i + 1 :]], [W[n] for n in names[:i]]
            n_out, n_in = start[name].shape
            A = product(behind) if behind else torch.eye(n_out, dtype=torch.float64).expand(rows, -1, -1)
            B = product(before) if before else torch.eye(n_in, dtype=torch.float64).expand(rows, -1, -1)
            a, U = torch.linalg.eigh(A.mT @ A)
            b, V = torch.linalg.eigh(B @ B.mT)
            curved = 2 * nb * c
            precision = curved * a.clamp(min=0)[:, :, None] * b.clamp(min=0)[:, None, :] + pull
            force = curved * A.mT @ truth @ B.mT + pull * start[name]
            noise = torch.from_numpy(rng.standard_normal((rows, n_out, n_in)))
            W[name] = U @ (U.mT @ force @ V / precision + noise / precision.sqrt()) @ V.mT
        if sweep >= burn_in:
            trace.append(nb[:, 0, 0] * loss(W, None))
    return chain_statistics(torch.stack(trace, 1).unflatten(0, (len(nbeta), n_chains)))
