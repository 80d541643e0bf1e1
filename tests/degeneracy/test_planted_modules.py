"""Test that two planted and hidden modules are recovered node by node from the interaction basis and its edges."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from crux.degeneracy.ablation import EdgeAblation, smallest_sufficient
from crux.degeneracy.basis_options import ModularityOptions
from crux.degeneracy.edges import interaction_edges
from crux.degeneracy.interaction_basis import interaction_bases
from crux.degeneracy.modularity import NO_MODULE, cutoff_from_ablation, find_modules
from crux.degeneracy.networks.chain import Chain
from tests.support.groupings import same_grouping


class Planted(NamedTuple):
    """A network of two hidden blocks, with the subspace of each block in each layer."""

    chain: Chain
    x: Tensor
    subspaces: list[list[Tensor]]
    """Orthonormal directions [d, k] of the first and of the second block, per layer."""


def plant_modules(sizes: list[tuple[int, int]], *, kinds: str, seed: int) -> Planted:
    """Return a block-diagonal network whose blocks are hidden by rotating linear layers and permuting ReLU neurons.

    Inputs are all combinations of 30 samples of one block and 30 of the other, so that they are uncorrelated in the sample.

    Args:
        kinds: one letter per hidden layer: r for ReLU, l for linear.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=rng)

    orthogonal_maps = []
    for i, size in enumerate(sizes):
        d = sum(size)
        hidden = 0 < i < len(sizes) - 1
        orthogonal_maps.append(
            torch.eye(d, dtype=torch.float64)[torch.randperm(d, generator=rng)]
            if hidden and kinds[i - 1] == "r"
            else torch.linalg.qr(normal(d, d)).Q
        )
    stages: dict[str, nn.Module] = {"input": nn.Identity()}
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
        W = torch.block_diag(*(normal(n_out, n_in) * (2 / n_in) ** 0.5 for n_in, n_out in zip(a, b, strict=True)))
        linear = nn.Linear(sum(a), sum(b), dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(orthogonal_maps[i + 1].T @ W @ orthogonal_maps[i])
            linear.bias.copy_(0.3 * normal(sum(b)) @ orthogonal_maps[i + 1])
        last = i == len(sizes) - 2
        stages["output" if last else f"post{i}"] = (
            nn.Sequential(linear, nn.ReLU()) if not last and kinds[i] == "r" else linear
        )
    parts = [normal(30, n) for n in sizes[0]]
    z = torch.cat([parts[0].repeat_interleave(30, 0), parts[1].repeat(30, 1)], 1)
    subspaces = [[m[: size[0]].T, m[size[0] :].T] for m, size in zip(orthogonal_maps, sizes, strict=True)]
    return Planted(Chain(stages).requires_grad_(False), z @ orthogonal_maps[0], subspaces)


@pytest.mark.parametrize("kinds", ["rr", "lr", "rl", "ll"])
@pytest.mark.parametrize(
    "sizes", [[(4, 4), (4, 4), (4, 4), (3, 3)], [(4, 3), (6, 5), (5, 7), (2, 3)]], ids=["equal", "unequal"]
)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ahead", [1, None], ids=["local", "global"])
def test_two_hidden_modules_are_recovered_exactly(
    sizes: list[tuple[int, int]], kinds: str, seed: int, ahead: int | None
) -> None:
    """All nodes are in the right module if all edges above rounding errors count.

    The same holds if only the edges that an ablation needs count, for the nodes that still have edges.

    Edges between linear layers are diagonal, so that at resolution 1 the best partition separates such layers; 0.1 keeps them together. In
    a deep linear network each direction is a separate module, within one block.
    """
    network = plant_modules(sizes, kinds=kinds, seed=seed)
    chain, x = network.chain, network.x
    bases = interaction_bases(
        chain, [x], hooks=chain.hooks, ahead=ahead, last=None, probes=None, threshold=1e-9, seed=0
    )
    strengths = [
        e.strength for e in interaction_edges(chain, [x], bases=bases, points=4, probes=None, mode=None, seed=0)
    ]
    shares_in_second = [
        (basis.C_pinv @ subspace[1]).square().sum(1) / basis.C_pinv.square().sum(1)
        for basis, subspace in zip(bases, network.subspaces, strict=True)
    ]
    assert all(bool(((s < 1e-12) | (s > 1 - 1e-12)).all()) for s in shares_in_second)
    planted = [(s > 0.5).long() for s in shares_in_second]

    resolution = 0.1 if "l" in kinds else 1.0
    options = ModularityOptions(resolution, iterations=10, starts=10)
    above_rounding = [1e-12 * float(s.max()) for s in strengths]
    found = find_modules(strengths, cutoffs=above_rounding, constant=None, options=options, seed=0)
    if "r" in kinds:
        assert found.n == 2
        assert same_grouping(found.labels, planted)
    else:
        assert found.n == sum(sizes[-1])  # the size of the smallest layer
        module_and_block = zip(torch.cat(found.labels).tolist(), torch.cat(planted).tolist(), strict=True)
        assert len(set(module_and_block)) == found.n  # no module is in both blocks

    if kinds != "rr":  # an ablation leaves so few edges between linear layers that blocks fall apart
        return
    clean = chain(x)
    cutoffs = []
    for pair, strength in zip(itertools.pairwise(bases), strengths, strict=True):
        ablation = EdgeAblation(
            chain, [x], bases=pair, strength=strength, end="output",
            loss=lambda _, y: (y - clean).square().sum(1) / clean.var(0).sum(),
        )  # fmt: skip
        cutoffs.append(
            cutoff_from_ablation(strength, smallest_sufficient(ablation.loss, size=ablation.size, limit=1e-3) or 1)
        )
    needed = find_modules(strengths, cutoffs=cutoffs, constant=None, options=options, seed=0)
    has_edges = [labels != NO_MODULE for labels in needed.labels]
    assert sum(int(k.sum()) for k in has_edges) > 0.6 * sum(len(k) for k in has_edges)
    in_graph = torch.cat(has_edges)
    modules, blocks = torch.cat(needed.labels)[in_graph].tolist(), torch.cat(planted)[in_graph].tolist()
    assert len(set(zip(modules, blocks, strict=True))) == needed.n == 2  # one module per block
