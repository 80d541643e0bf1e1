"""Tests of the number of directions and edges that a network needs, in cases with known answers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.ablation import EdgeAblation, NodeAblation, clean_loss, curve_counts, smallest_sufficient
from crux.degeneracy.basis import neuron_basis, random_basis
from crux.degeneracy.edges import interaction_edges
from crux.degeneracy.grams import moments
from crux.degeneracy.networks.chain import Chain
from crux.subjects.subject import FINAL
from tests.degeneracy.test_basis import HOOKS, find_bases_at
from tests.support.small_networks import inputs, perceptron, random_subject
from tests.support.tiny_subjects import TOKENS


def build_behavioural_loss(chain: Chain):
    """Return a loss function: the squared distance of an output to that of the unmodified chain, per sample."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (y - chain(x)).square().sum(-1)

    return loss


def test_loss_of_a_deep_linear_network_is_the_removed_strength() -> None:
    """At every layer, ‖Δ output‖² is the sum of the removed Λ, for directions and for (diagonal) edges."""
    chain = perceptron([6, 5, 7, 4], activation=nn.Identity, seed=0)
    batches = inputs((50, 6), seed=2, batches=3)
    bases = find_bases_at(chain, batches, ahead=1)
    strengths = bases[-1].strength  # Λ is the same at every layer of a linear network
    loss = build_behavioural_loss(chain)
    assert clean_loss(chain, batches, end="output", loss=loss) == 0
    found = interaction_edges(chain, batches, bases=bases, points=None, probes=None, mode=None, seed=0)
    for k in range(3):
        nodes = NodeAblation(chain, batches, basis=bases[k], end="output", loss=loss)
        between = EdgeAblation(
            chain, batches, bases=(bases[k], bases[k + 1]), strength=found[k].strength, end="output", loss=loss
        )
        assert (nodes.size, between.size) == (4, 16)
        for n in range(5):
            assert nodes.loss(n) == pytest.approx(float(strengths[n:].sum()), abs=1e-9)
            assert between.loss(n) == pytest.approx(float(strengths[n:].sum()), abs=1e-9)
        assert between.loss(16) < 1e-9
        assert smallest_sufficient(nodes.loss, size=4, limit=1.01 * float(strengths[2:].sum())) == 2
        assert smallest_sufficient(between.loss, size=16, limit=0.99 * float(strengths[2:].sum())) == 3


def test_edges_are_removed_separately_for_each_target_direction() -> None:
    """The losses equal those of one forward pass per target direction."""
    chain = perceptron([5, 8, 3], activation=nn.GELU, seed=0)
    batches = inputs((20, 5), seed=1)
    moments_at = moments(chain, batches, hooks=["input", "post0"])
    a, b = neuron_basis("input", moments_at["input"]), random_basis("post0", moments_at["post0"], seed=0)
    strength = torch.rand(8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ablation = EdgeAblation(chain, batches, bases=(a, b), strength=strength, end="output", loss=lambda x, y: y.sum(-1))
    x = torch.cat(batches)
    post, pre = chain.stages["post0"], chain.stages["pre0"]
    chain.requires_grad_(False)
    for n in (0, 1, 7, 23, 40):
        mask = ablation.mask(n)
        assert mask.sum() == n
        f_hat = a.coordinates(x)
        rows = [b.coordinates(post(pre(a.activations(f_hat * mask[i]))))[:, i] for i in range(8)]
        expected = chain.stages["output"](b.activations(torch.stack(rows, 1))).sum(1).mean()
        assert ablation.loss(n) == pytest.approx(float(expected), abs=1e-10)
    kept = ablation.mask(7)
    assert strength[kept].min() > strength[~kept].max()


@pytest.mark.slow
def test_keeping_all_or_nothing_in_a_language_model() -> None:
    subject = random_subject("gpt2").to(dtype=torch.float64)
    batches = [TOKENS[:, :6], TOKENS[:, 6:12]]
    hooks = ("blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre", FINAL)
    bases = find_bases_at(subject, batches, ahead=1, hooks=hooks)
    whole = clean_loss(subject, batches, end=FINAL, loss=lambda x, y: y.square().mean((1, 2)))
    for k, basis in enumerate(bases):
        nodes = NodeAblation(subject, batches, basis=basis, end=FINAL, loss=lambda x, y: y.square().mean((1, 2)))
        assert nodes.loss(basis.size) == pytest.approx(whole, rel=1e-9)
        assert nodes.loss(0) != pytest.approx(whole, rel=1e-3)
        if k < 2:
            strength = torch.ones(bases[k + 1].size, basis.size).double()
            between = EdgeAblation(
                subject, batches, bases=(basis, bases[k + 1]), strength=strength, end=FINAL,
                loss=lambda x, y: y.square().mean((1, 2)),
            )  # fmt: skip
            assert between.loss(between.size) == pytest.approx(whole, rel=1e-9)


def test_directions_that_are_not_read_are_not_needed() -> None:
    """The output reads two of five input dimensions: the interaction basis needs two directions, neurons and rotations more."""
    chain = perceptron([5, 8, 2], activation=nn.GELU, seed=0)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(5))).Q.double()
    with torch.no_grad():
        stage = chain.stages["pre0"]
        assert isinstance(stage, nn.Linear)
        stage.weight.copy_(stage.weight @ rotation[:, :2] @ rotation[:, :2].T)
    batches = inputs((200, 5), seed=1)
    moments_at = moments(chain, batches, hooks=["input"])["input"]
    loss = build_behavioural_loss(chain)
    needed = {}
    for basis in (
        find_bases_at(chain, batches, ahead=1, hooks=("input", "output"))[0],
        neuron_basis("input", moments_at),
        random_basis("input", moments_at, seed=1),
    ):
        nodes = NodeAblation(chain, batches, basis=basis, end="output", loss=loss)
        needed[basis.name] = smallest_sufficient(nodes.loss, size=nodes.size, limit=1e-12)
    assert needed["local"] == 2
    assert needed["neuron"] == 5
    assert needed["random"] in (5, None)  # rounding decides whether all five are within 1e-12


@given(st.integers(0, 300), st.integers(1, 300))
def test_smallest_sufficient_finds_the_first_sufficient_number(first_sufficient: int, size: int) -> None:
    calls: list[int] = []

    def loss(n: int) -> float:
        calls.append(n)
        return float(n < first_sufficient)

    found = smallest_sufficient(loss, size=size, limit=0.5)
    assert found == (first_sufficient if first_sufficient <= size else None)
    assert len(calls) <= 20  # about 2 log2(300)
    assert max(calls) <= size


def test_curve_counts_include_both_ends() -> None:
    assert curve_counts(100) == [0, 1, 2, 4, 8, 16, 32, 64, 100]
    assert curve_counts(64) == [0, 1, 2, 4, 8, 16, 32, 64]
    assert curve_counts(1) == [0, 1]


def test_invalid_arguments_are_rejected() -> None:
    chain = perceptron([5, 8, 6, 3], activation=nn.GELU, seed=0)
    bases = find_bases_at(chain, inputs((20, 5), seed=1), ahead=1, hooks=HOOKS)
    for batches in ([], [torch.zeros(0, 5).double()]):
        with pytest.raises(UserError, match="no data"):
            NodeAblation(chain, batches, basis=bases[0], end="output", loss=build_behavioural_loss(chain))
    with pytest.raises(UserError, match="must come after"):
        EdgeAblation(
            chain, inputs((20, 5), seed=1), bases=(bases[1], bases[0]), strength=torch.ones(5, 8).double(),
            end="output", loss=build_behavioural_loss(chain),
        )  # fmt: skip
