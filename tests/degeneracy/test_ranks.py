"""Tests of ranks of Gram matrices, with which free directions are counted, against full Hessians of the behavioural loss."""

import pytest
import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.budget import FreeDirections
from crux.degeneracy.gram_ranks import gram_eigenvalues, gram_range, gram_rank, ranks_at_thresholds
from crux.degeneracy.grams import Target, jacobian_gram, moments
from crux.degeneracy.networks.chain import Chain
from tests.support.small_networks import inputs, perceptron

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # raised by torch.func.hessian itself

EXACT = 1e-10
"""Rank threshold for float64, below which there is only rounding error."""


def behavioural_hessian(network: Chain, x: Tensor, names: list[str]) -> Tensor:
    """Return the Hessian of mean_x ‖f_θ(x) − f_θ*(x)‖² with respect to the named parameters, by torch."""
    params = {name: value.detach() for name, value in network.named_parameters()}
    reference = network(x).detach()
    sizes = [params[name].numel() for name in names]

    def loss(flat: Tensor) -> Tensor:
        moved = {n: part.view_as(params[n]) for n, part in zip(names, flat.split(sizes), strict=True)}
        return (torch.func.functional_call(network, params | moved, (x,)) - reference).square().sum(-1).mean()

    return torch.func.hessian(loss)(torch.cat([params[name].flatten() for name in names]))


def count_free_directions(gram: Tensor, jacobian_gram: Tensor) -> int:
    ranks = gram_rank(gram, threshold=EXACT), gram_rank(jacobian_gram, threshold=EXACT)
    return FreeDirections("map", len(gram), len(jacobian_gram), *ranks).directions


def draw_matrix_of_rank(r: int, *, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, r, dtype=torch.float64) @ torch.randn(r, columns, dtype=torch.float64)


@pytest.mark.parametrize(("r_in", "r_out", "hessian"), [(4, 3, 12), (6, 5, 30), (4, 2, 8)])
def test_rank_of_a_linear_maps_hessian_is_the_product_of_the_gram_ranks(r_in: int, r_out: int, hessian: int) -> None:
    """d_in = 6 activations of rank r_in, d_out = 5 of which r_out directions reach the output.

    Expected ranks: docs/reference/learning_coefficients.md §5.
    """
    torch.manual_seed(0)
    first, middle, last = (nn.Linear(a, b, bias=False).double() for a, b in ((6, 6), (6, 5), (5, 5)))
    with torch.no_grad():
        first.weight.copy_(draw_matrix_of_rank(r_in, rows=6, columns=6))
        last.weight.copy_(draw_matrix_of_rank(r_out, rows=5, columns=5))
    network = Chain({"in": first, "middle": middle, "output": last})
    data = inputs((40, 6), seed=1)
    gram = moments(network, data, hooks=["in"])["in"].gram
    to_output = [Target("output", torch.eye(5, dtype=torch.float64))]
    for probes in (None, 1):
        k = jacobian_gram(network, data, start="middle", targets=to_output, probes=probes, seed=0)
        assert (gram_rank(gram, threshold=EXACT), gram_rank(k, threshold=EXACT)) == (r_in, r_out)
        assert count_free_directions(gram, k) == 30 - hessian  # of 6 · 5 weights
    H = behavioural_hessian(network, torch.cat(data), ["stages.middle.weight"])
    assert gram_rank(H, threshold=EXACT) == hessian
    # the smallest counted eigenvalue is well above the threshold
    assert gram_eigenvalues(H)[hessian - 1] > 10 * EXACT * gram_eigenvalues(H)[0]


def test_bias_is_a_weight_of_the_constant_activation() -> None:
    torch.manual_seed(0)
    network = perceptron([4, 3, 2], activation=nn.Identity, seed=0)
    (x,) = inputs((30, 4), seed=1, batches=1)
    x[:, 3] = x[:, 0] - 2 * x[:, 1] + 1  # depends on the others and the constant
    found = moments(network, [x], hooks=["input"])["input"]
    target = Target("output", torch.eye(2, dtype=torch.float64))
    k = jacobian_gram(network, [x], start="pre0", targets=[target], probes=None, seed=0)
    assert gram_rank(found.gram, threshold=EXACT) == 4
    assert gram_rank(found.augmented, threshold=EXACT) == 4  # of 5
    assert count_free_directions(found.augmented, k) == 15 - 4 * 2  # (4 inputs + bias) · 3 neurons; 2 outputs
    H = behavioural_hessian(network, x, ["stages.pre0.weight", "stages.pre0.bias"])
    assert gram_rank(H, threshold=EXACT) == 4 * 2


def test_without_factorisation_the_product_of_ranks_is_an_upper_bound() -> None:
    """In a ReLU network the Hessian's rank may be lower than the product of the ranks, but not higher."""
    for seed in range(5):
        network = perceptron([5, 6, 4, 3], activation=nn.ReLU, seed=seed)
        data = inputs((60, 5), seed=seed)
        gram = moments(network, data, hooks=["post0"])["post0"].augmented
        target = Target("output", torch.eye(3, dtype=torch.float64))
        k = jacobian_gram(network, data, start="pre1", targets=[target], probes=None, seed=0)
        H = behavioural_hessian(network, torch.cat(data), ["stages.pre1.weight", "stages.pre1.bias"])
        assert gram_rank(H, threshold=EXACT) <= 28 - count_free_directions(gram, k)  # (6 inputs + bias) · 4 neurons


def test_thresholds_are_relative_and_report_the_trace_left_out() -> None:
    values = torch.tensor([8.0, 1.0, 0.9, 0.1, 0.0])
    for scale in (1.0, 1e-20, 1e20):
        loose, tight = ranks_at_thresholds(scale * values, thresholds=(0.1, 1e-6))
        assert (loose.rank, tight.rank) == (3, 4)
        assert loose.trace_left_out == pytest.approx(0.01)
        assert tight.trace_left_out == 0
    assert ranks_at_thresholds(torch.zeros(3), thresholds=(0.5,))[0][1:] == (0, 0.0)
    assert gram_rank(torch.zeros(3, 3), threshold=0.5) == 0
    assert gram_range(torch.zeros(3, 3), threshold=0.5).shape == (3, 0)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_threshold_outside_0_and_1_is_rejected(threshold: float) -> None:
    with pytest.raises(UserError, match="must be a share of the largest value, above 0 and below 1"):
        gram_rank(torch.eye(2), threshold=threshold)


def test_unknown_or_misordered_hooks_are_rejected() -> None:
    network = perceptron([3, 4, 2], activation=nn.ReLU, seed=0)
    data = inputs((5, 3), seed=0)
    target = [Target("input", torch.eye(3, dtype=torch.float64))]
    with pytest.raises(UserError, match="must come after the first"):
        jacobian_gram(network, data, start="pre0", targets=target, probes=1, seed=0)
    with pytest.raises(UserError, match="pre9: no such hook point"):
        jacobian_gram(network, data, start="pre9", targets=target, probes=1, seed=0)
