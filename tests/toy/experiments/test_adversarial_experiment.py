"""The experiment on vulnerability and features per dimension."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crux.toy.experiments.adversarial import correlation

SMALL = ("experiment=toy/adversarial", "trainer.progress=false", "tracking=none")


def test_correlation_is_pearsons() -> None:
    a = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert correlation(a, 2 * a - 7) == pytest.approx(1)
    assert correlation(a, torch.tensor([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_a_short_run_attacks_every_instance(run_crux: Callable[..., int], tmp_path: Path) -> None:
    short = ("trainer.max_steps=200", "trainer.batch=64", "toy.held_out=1024", "toy.n_features=12", "toy.n_hidden=4")
    assert run_crux(*SMALL, *short, "toy.densities=[1.0,0.3,0.1]", "toy.seeds=2", f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    arrays = load_file(run / "arrays.safetensors")
    assert arrays["vulnerability"].shape == (6,)
    torch.testing.assert_close(arrays["vulnerability"][:2], torch.ones(2))  # at density 1 it is compared with itself
    assert (arrays["rise_gradient"] >= arrays["rise_analytic"] - 1e-6).all()
    assert (arrays["rise_gradient_each"] >= arrays["rise_analytic_each"] - 1e-6).all()
    assert (run / "figures" / "vulnerability.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("toy.densities=[0.5,0.3,0.1]", "compares at least two densities with 1.0"),
        ("toy.kind=linear", "needs relu_output"),
    ],
)
def test_unsuitable_options_are_rejected(given: str, says: str, error_message: Callable[..., str]) -> None:
    assert says in error_message(*SMALL, given)


@pytest.mark.slow
def test_small_setting_reproduces_the_paper(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(*SMALL, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert (
        json.loads((run / "metrics.json").read_text())["final/checks_failed"] <= 1
    )  # the optimum that a restart reaches depends on rounding, and so on the machine
