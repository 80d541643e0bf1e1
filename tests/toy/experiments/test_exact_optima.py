"""Trained restarts compared with exact optima, and the speed of training as one program."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


def run_for_metrics(run_crux: Callable[..., int], outputs: Path, *given: str) -> dict[str, float]:
    """Run an experiment and return its metrics."""
    assert run_crux(*given, "trainer.progress=false", "tracking=none", f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    return json.loads((folder / "metrics.json").read_text())


def test_two_features_in_one_dimension_find_the_digon(run_crux: Callable[..., int], tmp_path: Path) -> None:
    given = ("toy.n_features=2", "toy.n_hidden=1", "toy.densities=[0.1]", "toy.seeds=6", "trainer.max_steps=800")
    metrics = run_for_metrics(run_crux, tmp_path, "experiment=toy/exact_optima", *given, "toy.held_out=1024")
    assert metrics["final/checks"] == 2
    assert metrics["final/checks_failed"] == 0
    assert -1e-6 < metrics["final/excess/0.1"] < 0.005


@pytest.mark.slow
def test_five_features_reach_the_optimum_at_every_published_density(
    run_crux: Callable[..., int], tmp_path: Path
) -> None:
    metrics = run_for_metrics(run_crux, tmp_path, "experiment=toy/exact_optima")
    assert metrics["final/checks"] == 14
    assert metrics["final/checks_failed"] == 0
    published = {"0.5": 0.25675, "0.3": 0.13612, "0.2": 0.07959, "0.1": 0.02631, "0.05": 0.008904, "0.02": 0.002410}
    for density, loss in published.items():
        assert metrics[f"final/exact/{density}"] == pytest.approx(loss, rel=1e-3)


def test_models_without_exact_optimum_are_rejected(
    run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_crux("experiment=toy/exact_optima", "toy.n_features=20", f"output_dir={tmp_path}") == 2
    assert "at most 6 features" in capsys.readouterr().err


def test_speed_experiment_reports_shares(
    run_crux: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crux.toy.experiments.speed.MIN_SECONDS", 0.0)
    monkeypatch.setattr("crux.toy.experiments.speed.MIN_ROUNDS", 1)
    metrics = run_for_metrics(run_crux, tmp_path, "experiment=toy/speed", "toy.seeds=4")
    assert {f"final/share/{batch}" for batch in (16, 64, 256, 1024, 4096)} < metrics.keys()
