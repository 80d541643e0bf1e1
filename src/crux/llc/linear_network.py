"""Deep linear networks at a w* whose redundant factors are zero, and a Gibbs sampler of their posterior.

    L(W) = c ‖W_n … W_1 − T‖²,  c = 1 / ((n_in + 2) n_out)

This is the population loss, averaged over outputs, for inputs uniform in the unit ball. If all layers but one are fixed, the posterior
of that layer is Gaussian: with A the product of the layers after it and B that of the layers before it, its entries are independent in
the eigenbases of AᵀA and BBᵀ, with precision 2 nβ c a_i b_j + γ. Gibbs sampling, which draws one layer at a time, has no step size.
It mixes in tens of sweeps, whereas gradient samplers need thousands of steps, because each draw changes the scale of a whole layer.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.progress import track
from crux.llc.diagnostics import ChainStatistics, chain_statistics
from crux.llc.losses import Batch, ChainLoss
from crux.llc.noise import NoiseUse, make_generator


def layer_names(widths: Sequence[int]) -> list[str]:
    """Return the names of the weight matrices, starting at the input."""
    return [f"W{i + 1}" for i in range(len(widths) - 1)]


def loss_scale(widths: Sequence[int]) -> float:
    """Return c = 1 / ((n_in + 2) n_out)."""
    return 1 / ((widths[0] + 2) * widths[-1])


def minimum_weights(widths: Sequence[int], rank: int) -> dict[str, Float[Tensor, "out in"]]:
    """Return w*: every layer is the identity on its first `rank` coordinates and zero elsewhere, and so is the true map T."""
    weights = {}
    for name, n_in, n_out in zip(layer_names(widths), widths, widths[1:], strict=False):
        W = torch.zeros(n_out, n_in, dtype=torch.float64)
        W[:rank, :rank] = torch.eye(rank)
        weights[name] = W
    return weights


def multiply_layers(layers: Sequence[Float[Tensor, "*row _out _in"]]) -> Float[Tensor, "*row _out _in"]:
    """Return W_n … W_1 for `layers` = W_1, …, W_n."""
    return reduce(lambda product, layer: layer @ product, layers)


def linear_network_loss(widths: Sequence[int], rank: int) -> ChainLoss:
    """Return the loss L of every chain."""
    names, c = layer_names(widths), loss_scale(widths)
    truth = multiply_layers(list(minimum_weights(widths, rank).values()))

    def loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
        return c * (multiply_layers([p[name] for name in names]) - truth.to(p[names[0]])).square().sum((-2, -1))

    return loss


def sample_with_gibbs(
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
    """Sample nβ E[L] under exp(−nβ L − γ/2 ‖w − w*‖²), to which every unbiased estimate converges; γ must be positive."""
    loss, c = linear_network_loss(widths, rank), loss_scale(widths)
    start = minimum_weights(widths, rank)
    names, truth = list(start), multiply_layers(list(start.values()))
    rows = len(nbeta) * n_chains
    nb, pull = (v.double().repeat_interleave(n_chains)[:, None, None] for v in (nbeta, gamma))
    W = {name: value.expand(rows, -1, -1).clone() for name, value in start.items()}
    trace = []
    for sweep in track(range(burn_in + draws), "Gibbs sampling"):
        rng = make_generator(seed, 0, NoiseUse.moves, sweep)
        for i, name in enumerate(names):
            layers_after, layers_before = [W[n] for n in names[i + 1 :]], [W[n] for n in names[:i]]
            n_out, n_in = start[name].shape
            A = (
                multiply_layers(layers_after)
                if layers_after
                else torch.eye(n_out, dtype=torch.float64).expand(rows, -1, -1)
            )
            B = (
                multiply_layers(layers_before)
                if layers_before
                else torch.eye(n_in, dtype=torch.float64).expand(rows, -1, -1)
            )
            a, U = torch.linalg.eigh(A.mT @ A)
            b, V = torch.linalg.eigh(B @ B.mT)
            curvature = 2 * nb * c
            precision = curvature * a.clamp(min=0)[:, :, None] * b.clamp(min=0)[:, None, :] + pull
            force = curvature * A.mT @ truth @ B.mT + pull * start[name]
            noise = torch.from_numpy(rng.standard_normal((rows, n_out, n_in)))
            W[name] = U @ (U.mT @ force @ V / precision + noise / precision.sqrt()) @ V.mT
        if sweep >= burn_in:
            trace.append(nb[:, 0, 0] * loss(W, None))
    return chain_statistics(torch.stack(trace, 1).unflatten(0, (len(nbeta), n_chains)))
