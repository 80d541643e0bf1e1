"""Calibration and speed of learning coefficients, from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crux.llc.calibration import (
    CalibrationRow,
    CaseGroup,
    KnownCase,
    calibrate,
    reflect_into_interval,
    shallow_linear_cases,
)
from crux.llc.chains import ChainSettings
from crux.llc.coordinates import Coordinates
from crux.llc.curvature import measure_curvature
from crux.llc.experiments.kgons import Kgon, kgon_loss, optimise_kgons
from crux.llc.landscape import Landscape
from crux.llc.losses import NO_DATA
from crux.llc.samplers.hmc import HMC


def run(run_crux: Callable[..., int], outputs: Path, *given: str) -> tuple[dict[str, float], str]:
    """Run a job; return its metrics and its report."""
    assert run_crux(*given, "tracking=none", f"output_dir={outputs}") == 0
    (folder,) = (outputs / "runs").iterdir()
    assert (folder / "DONE").exists()
    return json.loads((folder / "metrics.json").read_text()), (folder / "report.md").read_text()


@pytest.mark.slow
def test_a_small_calibration_passes(run_crux: Callable[..., int], tmp_path: Path) -> None:
    metrics, report = run(run_crux, tmp_path, "experiment=llc/calibrate", "llc.cases=[regular]", "llc.length=0.1")
    assert metrics["final/cases"] == 16
    assert metrics["final/checks_failed"] == 0
    assert 0 < metrics["final/worst_errors"] < 3
    assert "| d = 5, ε h = 2 | SGLD | 1e+04 |" in report
    assert len(list(tmp_path.glob("runs/*/figures/errors.png"))) == 1


@pytest.mark.slow
def test_singular_cases_pass_at_small_size() -> None:
    """A 5-gon, and a linear network whose minima form no manifold: at nβ = 1e3 its estimate must be 5.83, not λ = 6."""
    kgon = Kgon(5, 0, 5)
    corners = CaseGroup(
        "", [KnownCase("5-gon", 7.0, 1e5, 1.0, None)], kgon_loss([kgon], n_chains=16), optimise_kgons([kgon]),
        ChainSettings(HMC(leapfrogs=25), 16, 30, 120, 1, torch.tensor([0.7e-5], dtype=torch.float64)),
    )  # fmt: skip
    loss, params, cases = shallow_linear_cases((4, 3, 8), rank=0, nbetas=(1e3,))
    assert cases[0].expected == pytest.approx(5.834, abs=2e-3)
    eps = torch.tensor([1e-3], dtype=torch.float64)
    singular = CaseGroup("", cases, loss, params, ChainSettings(HMC(leapfrogs=50), 64, 30, 100, 1, eps))
    for group in (corners, singular):
        (row,) = calibrate(group, length=1.0, seed=0)
        assert row.passed, row
        assert not row.escaped
        assert row.standard_error < 0.03 * row.case.llc


def test_speed_of_one_batch_against_a_loop_over_chains(
    run_crux: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crux.llc.experiments.speed.ROUNDS", 2)
    monkeypatch.setattr("crux.llc.experiments.speed.CHAINS", (4, 8))
    metrics, _ = run(run_crux, tmp_path, "experiment=llc/speed")
    assert metrics["final/gain/8"] > 0
    assert metrics["final/checks"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("llc.length=0", "llc.length=0: must be more than 0"),
        ("llc.cases=[]", "must name one or more of regular"),
        ("llc.cases=[octagons]", "octagons"),
        ("llc.experiment=kgons", "kgons"),
        ("layer=3", "layer: this job has no such key"),
        ("trainer.batch=3", "trainer.batch: this job has no such key"),
    ],
)
def test_user_errors_are_one_line(
    given: str, message: str, run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_crux("experiment=llc/calibrate", given, f"output_dir={tmp_path}") == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_the_job_needs_an_experiment(
    run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_crux("job=llc", f"output_dir={tmp_path}") == 2
    assert "choose an experiment, experiment=llc/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kgon", "loss", "rank"),
    [
        (Kgon(5, 0, 5), 0.0158256, 14),
        (Kgon(6, 0, 6), 0.0481924, 17),
        (Kgon(7, 0, 7), 0.0832712, 20),
        (Kgon(8, 0, 8), 0.1155459, 23),
        (Kgon(5, 0, 6), 0.068744, 14),
        (Kgon(5, 0, 7), 0.106542, 14),
        (Kgon(6, 0, 7), 0.088927, 17),
        (Kgon(5, 0, 8), 0.134891, 14),
        (Kgon(5, 1, 6), 0.061799, 17),
    ],
)
def test_kgons_have_the_published_losses_and_ranks(kgon: Kgon, loss: float, rank: int) -> None:
    """They have them separately, and embedded next to an 8-gon."""
    for case, group in ((0, [kgon]), (1, [Kgon(8, 0, 8), kgon])):
        params = optimise_kgons(group)
        coordinates = Coordinates(params, free=None)
        loss_function = kgon_loss(group, n_chains=1)
        assert float(loss_function(params, None)[case]) == pytest.approx(loss, abs=1e-6)
        curvature = measure_curvature(Landscape(loss_function, coordinates, NO_DATA, NO_DATA, [(0, 0)] * len(group), 1))
        assert int((curvature.values[case] > 1e-6).sum()) == rank == round(2 * kgon.llc)
        assert float(curvature.gradient_norm[case]) < 1e-10


def test_reflection_at_both_walls() -> None:
    w = torch.tensor([-2.5, -1.2, -1.0, 0.3, 1.0, 1.1, 3.2])
    torch.testing.assert_close(reflect_into_interval(w), torch.tensor([0.5, -0.8, -1.0, 0.3, 1.0, 0.9, -0.8]))


def test_pass_criteria() -> None:
    def row(mean: float, error: float, predicted: float) -> CalibrationRow:
        return CalibrationRow("", "", KnownCase("", 10.0, 1e3, 1.0, None), mean, error, predicted, 1.0, 1e3, 1.0, False)

    assert row(10.2, 0.09, 10.05).passed
    assert row(10.2, 0.09, 10.05).must_be_close
    assert not row(10.2, 0.04, 10.05).passed  # more than three standard errors from the prediction
    assert not row(10.35, 0.099, 10.06).passed  # within three standard errors, but more than 3 % from λ
    assert row(10.6, 0.2, 10.05).passed  # the standard error is too large to require 3 %
    assert not row(12.0, 0.05, 12.0).must_be_close
