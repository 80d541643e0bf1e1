"""Tests of edges, in forward and reverse mode, against full Jacobians by torch.func.jacrev."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis, neuron_basis
from crux.degeneracy.edges import Mode, interaction_edges
from crux.degeneracy.grams import moments
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.networks.network import Network
from crux.subjects.subject import FINAL
from tests.degeneracy.test_basis import HOOKS, MixPositions, find_bases_at
from tests.support.small_networks import inputs, perceptron, random_subject
from tests.support.tiny_subjects import TOKENS


def compute_by_jacobians(
    network: Network, batches: list[Tensor], a: Basis, b: Basis, alphas: list[tuple[float, float]]
) -> Tensor:
    """Compute Ê from the full Jacobian between all positions, sample by sample."""
    total = torch.zeros(b.size, a.size, dtype=torch.float64)
    n = 0
    for batch in batches:
        for x in batch:
            clean = network.clean(x[None], capture=[a.hook], final=False)
            f_hat = a.coordinates(clean.activations[a.hook])

            def run(coordinates: Tensor, clean=clean) -> Tensor:
                return b.coordinates(
                    network.continue_from(clean, a.hook, a.activations(coordinates), ends=[b.hook])[b.hook]
                )

            integral = torch.stack([w * torch.func.jacrev(run)(alpha * f_hat) for alpha, w in alphas]).sum(0)
            J = integral.reshape(-1, b.size, f_hat[0, ..., 0].numel(), a.size)  # t, i, s, j
            total += torch.einsum("tisj,sj->tij", J, f_hat.reshape(-1, a.size)).square().sum(0)
            n += len(J)
    return total / n


GAUSS_LEGENDRE_2 = [(0.5 - 0.75**0.5 / 3, 0.5), (0.5 + 0.75**0.5 / 3, 0.5)]
"""(α, weight) of the two Gauss–Legendre points on [0, 1]."""


@pytest.mark.parametrize("mode", ["jvp", "vjp", None])
@pytest.mark.parametrize(("points", "alphas"), [(None, [(1.0, 1.0)]), (2, GAUSS_LEGENDRE_2)])
def test_edges_equal_those_from_full_jacobians(
    mode: Mode | None, points: int | None, alphas: list[tuple[float, float]]
) -> None:
    torch.manual_seed(0)
    with_positions = Chain({"input": nn.Identity(), "a": MixPositions(4, 6), "b": MixPositions(6, 3)}).double()
    for network, hooks, batches in (
        (perceptron([5, 8, 6, 3], activation=nn.GELU, seed=0), HOOKS, inputs((6, 5), seed=1)),
        (with_positions, ("input", "a", "b"), inputs((6, 3, 4), seed=1)),
    ):
        bases = find_bases_at(network, batches, ahead=1, hooks=hooks)
        found = interaction_edges(network, batches, bases=bases, points=points, probes=None, mode=mode, seed=0)
        assert [(e.source, e.target) for e in found] == list(itertools.pairwise(hooks))
        for k, edges in enumerate(found):
            expected = compute_by_jacobians(network, batches, bases[k], bases[k + 1], alphas)
            assert torch.allclose(edges.strength, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("gpt2", 1e-8), ("llama", 1e-5), ("gemma2", 1e-5)]
)  # RMS norms are float32
def test_language_models(kind: str, tolerance: float) -> None:
    """Edges run through attention, and from inside attention to the output."""
    subject = random_subject(kind).to(dtype=torch.float64)
    batches = [TOKENS[:, :4]]
    hooks = ("blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", FINAL)
    moments_at = moments(subject, batches, hooks=hooks)
    bases = [neuron_basis(hook, moments_at[hook]).strongest(3) for hook in hooks]
    with sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be mapped over
        expected = [compute_by_jacobians(subject, batches, a, b, [(1.0, 1.0)]) for a, b in itertools.pairwise(bases)]
    for mode in ("jvp", "vjp"):
        found = interaction_edges(subject, batches, bases=bases, points=None, probes=None, mode=mode, seed=0)
        for edges, exact in zip(found, expected, strict=True):
            assert torch.allclose(edges.strength, exact, rtol=tolerance, atol=1e-12)
            assert exact.max() > 0


def test_random_probes_are_unbiased() -> None:
    torch.manual_seed(0)
    network = Chain({"input": nn.Identity(), "a": MixPositions(4, 6), "b": MixPositions(6, 3)}).double()
    batches = inputs((4, 3, 4), seed=1)
    bases = find_bases_at(network, batches, ahead=1, hooks=("input", "a", "b"))

    def strength(probes: int | None, seed: int) -> Tensor:
        return interaction_edges(network, batches, bases=bases, points=None, probes=probes, mode="vjp", seed=seed)[
            0
        ].strength

    exact = strength(None, 0)
    estimates = torch.stack([strength(2, seed) for seed in range(200)])
    error = estimates.std(0) / len(estimates) ** 0.5
    assert ((estimates.mean(0) - exact).abs() < 4.5 * error).all()
    assert (error < 0.05 * exact.max()).all()  # small enough for the comparison to mean something


@pytest.mark.parametrize("points", [None, 3])
def test_deep_linear_networks_have_diagonal_edges(points: int | None) -> None:
    """E_ii = Λ_i, and all other edges are 0."""
    chain = perceptron([6, 5, 7, 4], activation=nn.Identity, seed=0)
    batches = inputs((50, 6), seed=2)
    bases = find_bases_at(chain, batches, ahead=1)
    for edges in interaction_edges(chain, batches, bases=bases, points=points, probes=None, mode=None, seed=0):
        expected = bases[-1].strength
        assert torch.allclose(edges.strength, expected.diag(), rtol=0, atol=1e-8 * float(expected[0]))
        assert torch.allclose(edges.constant, torch.zeros(4).double(), atol=1e-8 * float(expected[0]))


def test_disconnected_blocks_have_no_edges_between_them() -> None:
    """In a block-diagonal MLP of width 8 with 4 layers every direction lies in one block, and edges between blocks are 0."""
    chain = perceptron([8, 8, 8, 8, 8], activation=nn.ReLU, seed=0)
    mask = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    for stage in chain.stages.values():
        if isinstance(stage, nn.Linear):
            with torch.no_grad():
                stage.weight.mul_(mask)
    # all pairs of the two halves, because the blocks' inputs must have zero covariance in the sample
    halves = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batches = [torch.cat([halves.repeat_interleave(20, 0), halves.flip(0).repeat(20, 1)], 1)]
    hooks = ("input", "post0", "post1", "post2", "output")
    for ahead in (1, None):
        bases = find_bases_at(chain, batches, ahead=ahead, hooks=hooks)
        block = []
        for basis in bases:
            share = basis.C_pinv[:, :4].square().sum(1) / basis.C_pinv.square().sum(1)
            assert ((share < 1e-8) | (share > 1 - 1e-8)).all()
            block.append(share > 0.5)
        for k, edges in enumerate(
            interaction_edges(chain, batches, bases=bases, points=8, probes=None, mode=None, seed=0)
        ):
            across = block[k + 1][:, None] != block[k][None]
            assert across.any()  # there are directions in both blocks
            assert edges.strength[across].max() < 1e-12 * edges.strength.max()


def test_edges_of_the_constant_node_are_the_effect_of_the_mean() -> None:
    """By hand for one ReLU: the mean input is (1, −1), the output for this input (1, 0), and the mean output (1.5, 0.5)."""
    chain = Chain({"input": nn.Identity(), "output": nn.ReLU()})
    batches = [torch.tensor([[3.0, 1.0], [-1.0, -3.0]], dtype=torch.float64)]
    moments_at = moments(chain, batches, hooks=["input", "output"])
    bases = [neuron_basis(hook, moments_at[hook]) for hook in ("input", "output")]
    (found,) = interaction_edges(chain, batches, bases=bases, points=None, probes=None, mode=None, seed=0)
    # the basis sorts the neurons by variance; its directions are matched with neurons 0 and 1 here
    constant = dict(zip(bases[1].C_pinv.argmax(1).tolist(), found.constant.tolist(), strict=True))
    assert constant == pytest.approx({0: 0.25, 1: 0.25})
    assert found.strength.diagonal().sum() == pytest.approx(4 / 2 + 4 / 2)
    with pytest.raises(UserError, match="must come after"):
        interaction_edges(chain, batches, bases=bases[::-1], points=None, probes=None, mode=None, seed=0)
    with pytest.raises(UserError, match="no data"):
        interaction_edges(chain, [], bases=bases, points=None, probes=None, mode=None, seed=0)
