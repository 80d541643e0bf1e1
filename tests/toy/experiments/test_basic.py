"""The basic results of Elhage et al.: which features are represented, and which share a direction."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.toy.experiments.basic import bias_error, count_misplaced, gram_error, linear_excess, linear_optimum
from crux.toy.features import FeatureDistribution
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import Weights

SMALL = ("experiment=toy/basic", "trainer.progress=false", "tracking=none")


def test_linear_optimum_is_the_variance_of_the_dropped_features() -> None:
    """p = 1/2 has variance 1/6 − 1/16 = 5/48; of I = 1, 1/2, 1/4 in one dimension the last two are dropped."""
    density, importance = torch.full((3,), 0.5, dtype=torch.float64), torch.tensor([1.0, 0.5, 0.25]).double()
    optimum = linear_optimum(density, importance=importance, n_hidden=1)
    assert optimum == pytest.approx(0.75 * 5 / 48, rel=1e-12)


def test_linear_optimum_is_a_lower_bound_and_is_attained() -> None:
    density, m, n = torch.tensor([[0.3], [0.01]]).repeat(1, 6), 2, 6
    importance = (0.7 ** torch.arange(n)).expand(2, 1, n)
    distribution = FeatureDistribution(Cooccurrence.independent, 1, False)
    program = Program(
        "linear", Kind.linear, m, distribution, torch.zeros(2, dtype=torch.long), density, importance, None
    )
    W = torch.eye(n)[:m].expand(2, 1, m, n)
    b = torch.where(torch.arange(n) < m, 0, density / 2)[:, None]
    dedicated = TrainedProgram(program, Weights(W, b, None), torch.zeros(2, 1), {})
    torch.testing.assert_close(linear_excess(dedicated), torch.zeros(2, 1).double(), atol=1e-6, rtol=0)
    assert gram_error(W[:, 0]) == 0
    assert bias_error(dedicated.weights._replace(W=W[:, 0], b=b[:, 0]), density[:, 0], m) == 0
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        shaken = Weights(W + 0.1 * torch.randn(W.shape, generator=rng), b, None)
        assert (linear_excess(dedicated._replace(weights=shaken)) > 0).all()


def test_errors_are_the_largest_over_models() -> None:
    W = torch.tensor([[1.0, 0.0, 0.5]])[None]  # WᵀW = [[1, 0, .5], [0, 0, 0], [.5, 0, .25]]
    assert gram_error(W) == pytest.approx(2 * 0.25 + 0.0625)
    assert gram_error(torch.stack([W[0], torch.tensor([[1.0, 0.0, 0.0]])])) == gram_error(W)  # the worst model counts
    assert count_misplaced(W) == 0
    assert count_misplaced(torch.tensor([[[0.0, 1.0, 0.6]]])) == 3
    weights = Weights(W, torch.tensor([[9.0, 0.3, 0.1]]), None)  # p/2 = 0.2: both are off by half of it
    assert bias_error(weights, torch.tensor([0.4]), 1) == pytest.approx(0.5)


def test_a_short_run_draws_one_panel_per_density(run_crux: Callable[..., int], tmp_path: Path) -> None:
    short = ("trainer.max_steps=20", "trainer.batch=64", "toy.held_out=1024", "trainer.log_every=10")
    assert run_crux(*SMALL, *short, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["final/checks"] == 11
    assert {f"final/represented/{p}" for p in ("1", "0.3", "0.1", "0.03", "0.01", "0.003", "0.001")} <= metrics.keys()
    arrays = load_file(run / "arrays.safetensors")
    assert arrays["W"].shape == arrays["W_linear"].shape == (7, 5, 20)
    assert (run / "figures" / "superposition.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("toy.densities=[0.1,1.0]", "descending order"),
        ("toy.kind=absolute_value", "compares the linear model with toy.kind=relu_output"),
        ("toy.n_hidden=20", "fewer hidden dimensions than features"),
    ],
)
def test_unsuitable_options_are_rejected(given: str, says: str, error_message: Callable[..., str]) -> None:
    assert says in error_message(*SMALL, given)


@pytest.mark.slow
def test_small_setting_reproduces_the_paper(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(*SMALL, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["final/checks_failed"] == 0
