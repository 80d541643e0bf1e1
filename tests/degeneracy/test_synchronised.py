"""Tests of synchronised neurons: the streaming formula against loops over pairs, planted blocks, and shared gates."""

import pytest
import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.budget import Budget, Layer, degeneracy_budget
from crux.degeneracy.gram_ranks import gram_rank
from crux.degeneracy.grams import Target, jacobian_gram
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.synchronised import (
    gate_sources,
    measure_synchrony,
    relu_layers,
    run_with_shared_gates,
    synchronised_blocks,
)
from tests.degeneracy.test_ranks import EXACT, behavioural_hessian
from tests.support.small_networks import perceptron

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # raised by torch.func.hessian itself

MAX_ROUNDING_DISTANCE = 1e-12
"""Distance threshold for blocks of neurons that agree on every sample, apart from rounding errors."""


def compute_error_by_pairs(p: Tensor) -> Tensor:
    """Compute E[(o_i − o_j)² p_j²] / E[o_j p_j²] pair by pair; infinite if one of the two is never on."""
    o = (p > 0).double()
    error = torch.zeros(p.shape[1], p.shape[1], dtype=torch.float64)
    for i in range(p.shape[1]):
        for j in range(p.shape[1]):
            if i != j:
                below = (o[:, j] * p[:, j] ** 2).mean()
                dead = o[:, i].sum() == 0 or o[:, j].sum() == 0
                error[i, j] = torch.inf if dead else ((o[:, i] - o[:, j]) ** 2 * p[:, j] ** 2).mean() / below
    return error


def compute_expanded_error(p: Tensor) -> Tensor:
    """Compute the formula of docs/reference/interaction_basis.md §5: Oᵀ(P²) + 1 colsum(O∘P²) − 2 Oᵀ(O∘P²), over colsum(O∘P²)."""
    o, square = (p > 0).double(), p.square()
    below = (o * square).sum(0)
    return (o.T @ square + below - 2 * o.T @ (o * square)) / below


def draw_pre_activations(n: int, h: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(n, h, dtype=torch.float64) @ torch.randn(h, h, dtype=torch.float64) + torch.randn(h).double()


def test_streaming_equals_pairwise_error() -> None:
    p = draw_pre_activations(200, 7)
    found = measure_synchrony(p.split(33))
    torch.testing.assert_close(found.error, compute_error_by_pairs(p))
    torch.testing.assert_close(found.error, compute_expanded_error(p).fill_diagonal_(0.0))
    torch.testing.assert_close(found.on_share, (p > 0).double().mean(0))
    assert torch.equal(found.distance, found.distance.T)
    assert bool((found.distance >= found.error).all())
    assert not torch.equal(found.error, found.error.T)


def test_dead_neurons_are_in_no_block_and_cause_no_division_by_zero() -> None:
    p = draw_pre_activations(100, 6)
    p[:, [1, 4]] = -p[:, [1, 4]].abs() - 0.1
    found = measure_synchrony([p])
    torch.testing.assert_close(found.error, compute_error_by_pairs(p))
    assert not bool(found.error.isnan().any())
    assert found.dead.tolist() == [1, 4]
    for block in synchronised_blocks(found.distance, threshold=0.999):
        assert not set(block.members) & {1, 4}
    assert synchronised_blocks(measure_synchrony([-p.abs()]).distance, threshold=0.9) == []
    assert synchronised_blocks(measure_synchrony([p[:, :1].abs()]).distance, threshold=0.9) == []


def test_distance_of_neurons_that_agree_is_exactly_zero() -> None:
    """In float32 and float64, a difference of sums would leave a rounding error."""
    for dtype in (torch.float32, torch.float64):
        base = draw_pre_activations(5000, 1).to(dtype)
        p = base * torch.rand(5000, 8, dtype=dtype).add(0.01)
        assert torch.equal(measure_synchrony(p.split(700)).error, torch.zeros(8, 8).double())


def plant_block(k: int, *, others: int, seed: int) -> tuple[Chain, Tensor]:
    """Return a network without biases, and samples, for which the first k hidden neurons are synchronised.

    Their weights are close to one direction u, and no sample is close to orthogonal to u.
    """
    torch.manual_seed(seed)
    d, h = 6, k + others
    network = Chain(
        {"pre": nn.Linear(d, h, bias=False), "post": nn.ReLU(), "output": nn.Linear(h, 5, bias=False)}
    ).double()
    x = torch.randn(400, d, dtype=torch.float64)
    x[:, 0] = torch.where(torch.rand(400) < 0.5, 1.0, -1.0) * (8 + torch.rand(400))
    with torch.no_grad():
        weight = network.stages["pre"].weight
        assert isinstance(weight, Tensor)
        weight[:k] = 0.15 * torch.randn(k, d)
        weight[:k, 0] = 1 + torch.rand(k)
        weight[k:, 0] *= 0.02  # the other neurons are on for some samples on both sides
    return network, x


@pytest.mark.parametrize(("k", "extra"), [(2, 2), (3, 6), (4, 12)])
def test_synchronised_block_frees_k_squared_minus_k_directions(k: int, extra: int) -> None:
    network, x = plant_block(k, others=3, seed=0)
    p = network.clean(x, capture=["pre"], final=False).activations["pre"]
    (block,) = synchronised_blocks(measure_synchrony([p]).distance, threshold=MAX_ROUNDING_DISTANCE)
    assert block.members == tuple(range(k))
    H = behavioural_hessian(network, x, ["stages.pre.weight", "stages.output.weight"])
    free = len(H) - gram_rank(H, threshold=EXACT)
    assert free == (k + 3) + extra  # one rescaling per neuron, and k² − k
    budget = count_budget(network, x, [[block.members]])
    assert (budget.by_ranks, budget.by_rescaling, budget.by_blocks) == (0, k + 3, extra)
    assert budget.bound == gram_rank(H, threshold=EXACT)


def count_budget(network: Chain, x: Tensor, found: list) -> Budget:
    """Return the budget of a chain of linear maps and ReLUs, given its synchronised blocks per hidden layer."""
    maps = [
        (hook, stage)
        for hook, stage in zip(network.hooks, network.stages.values(), strict=True)
        if isinstance(stage, nn.Linear)
    ]
    d_out = network(x).shape[1]
    target = [Target("output", torch.eye(d_out, dtype=torch.float64))]
    layers, before = [], x
    for i, (hook, stage) in enumerate(maps):
        if i:
            previous = network.hooks[network.hooks.index(hook) - 1]
            before = network.clean(x, capture=[previous], final=False).activations[previous]
        last = hook == "output"
        y = network.clean(x, capture=[hook], final=False).activations[hook]
        on = torch.ones(d_out).double() if last else (y > 0).double().mean(0)
        k = (
            torch.eye(d_out).double()
            if last
            else jacobian_gram(network, [x], start=hook, targets=target, probes=None, seed=0)
        )
        weight, ones = stage.weight.detach(), torch.ones(len(before), 1, dtype=torch.float64)
        biased = stage.bias is not None
        f = torch.cat([ones, before], 1) if biased else before
        w = torch.cat([stage.bias.detach()[:, None], weight], 1) if biased else weight
        layers.append(Layer(hook, w, f.T @ f / len(f), k, int(biased), on))
    return degeneracy_budget(layers, blocks=found, threshold=EXACT)


def test_budget_bounds_the_hessians_rank_and_is_often_tight() -> None:
    """With a dependent input, dead neurons and neurons that are always on, rank H ≤ 2λ_B ≤ the bound."""
    n_tight = 0
    for seed in range(10):
        network = perceptron([5, 6, 5, 3], activation=nn.ReLU, seed=seed)
        x = torch.randn(2000, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x[:, 4] = x[:, 0] + 1
        with torch.no_grad():
            stage = network.stages["pre0"]
            assert isinstance(stage, nn.Linear)
            stage.bias[seed % 6] = -1e3
        hidden = network.clean(x, capture=["pre0", "pre1"], final=False).activations
        found = [
            [
                b.members
                for b in synchronised_blocks(measure_synchrony([hidden[h]]).distance, threshold=MAX_ROUNDING_DISTANCE)
            ]
            for h in ("pre0", "pre1")
        ]
        budget = count_budget(network, x, found)
        H = behavioural_hessian(network, x, [name for name, _ in network.named_parameters()])
        assert budget.parameters == len(H)
        # the dependent input of each of six neurons, and the five other weights into and the five out of the dead neuron
        assert budget.by_ranks >= 6 + 5 + 5
        assert gram_rank(H, threshold=EXACT) <= budget.bound < budget.parameters
        on = [(hidden[h] > 0).double() for h in ("pre0", "pre1")]
        pairs = (on[0].T @ on[1])[on[0].any(0)][:, on[1].any(0)]
        # the weight between two neurons that are never on together is free, which the ranks do not show
        if pairs.min() > 0:
            assert gram_rank(H, threshold=EXACT) == budget.bound
            n_tight += 1
    assert n_tight >= 4  # of ten networks


def test_planted_blocks_are_recovered() -> None:
    torch.manual_seed(1)
    base = torch.randn(500, 4, dtype=torch.float64)
    group = torch.tensor([0, 1, 0, 2, 1, 3, 0])
    p = base[:, group] * (0.1 + torch.rand(500, 7, dtype=torch.float64))
    found = synchronised_blocks(measure_synchrony([p]).distance, threshold=MAX_ROUNDING_DISTANCE)
    assert [b.members for b in found] == [(0, 2, 6), (1, 4)]
    assert [b.members for b in synchronised_blocks(measure_synchrony([p]).distance, threshold=0.05)] == [
        (0, 2, 6),
        (1, 4),
    ]
    sources = gate_sources(found, 7)
    assert torch.equal(sources[[3, 5]], torch.tensor([3, 5]))
    assert set(sources[[0, 2, 6]].tolist()) == {found[0].medoid}


def test_medoid_is_the_neuron_nearest_to_the_others() -> None:
    distance = torch.tensor([[0, 0.1, 0.3, 5], [0.1, 0, 0.1, 5], [0.3, 0.1, 0, 5], [5, 5, 5, 0]]).double()
    (block,) = synchronised_blocks(distance, threshold=0.5)
    assert (block.members, block.medoid) == ((0, 1, 2), 1)
    (pair,) = synchronised_blocks(distance, threshold=0.2)  # complete linkage: 0 and 2 are too far apart
    assert len(pair.members) == 2


def test_shared_gates_change_outputs_only_outside_synchronised_blocks() -> None:
    network, x = plant_block(3, others=3, seed=2)
    assert relu_layers(network) == {"post": "pre"}
    own_gates = torch.arange(6)
    assert torch.equal(run_with_shared_gates(network, x, {"post": own_gates}), network(x))
    p = network.clean(x, capture=["pre"], final=False).activations["pre"]
    shared_gates = gate_sources(
        synchronised_blocks(measure_synchrony([p]).distance, threshold=MAX_ROUNDING_DISTANCE), 6
    )
    assert not torch.equal(shared_gates, own_gates)
    assert torch.equal(run_with_shared_gates(network, x, {"post": shared_gates}), network(x))
    shared_gates[3] = 4  # two neurons that are not synchronised
    by_hand = torch.relu(p)
    by_hand[:, 3] = torch.where(p[:, 4] > 0, p[:, 3], 0.0)
    torch.testing.assert_close(
        run_with_shared_gates(network, x, {"post": shared_gates}), network.stages["output"](by_hand)
    )


def test_network_without_relu_neurons_is_rejected() -> None:
    with pytest.raises(UserError, match="no ReLU neurons in this network; its hook points are input, pre0, post0"):
        relu_layers(perceptron([3, 4, 2], activation=nn.GELU, seed=0))


@pytest.mark.parametrize("threshold", [0.0, 1.0, -1.0])
def test_threshold_outside_its_range_is_rejected(threshold: float) -> None:
    with pytest.raises(UserError, match="must be a share of the largest value, above 0 and below 1"):
        synchronised_blocks(torch.zeros(3, 3), threshold=threshold)
