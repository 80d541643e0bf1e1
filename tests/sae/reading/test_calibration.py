"""The calibration of explanations, and its job."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from crux.sae.read_calibration import calibration_checks
from crux.sae.reading.calibration import calibrate_scores, made_up_text
from crux.sae.reading.conditions import Conditions, Kind
from crux.sae.reading.planted_codes import plant_codes
from crux.sae.reading.token_classes import no_classes


def test_the_job_passes_all_checks(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux("experiment=read/calibrate", "tracking=none", f"output_dir={tmp_path}") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "DONE").exists()
    metrics, report = json.loads((folder / "metrics.json").read_text()), (folder / "report.md").read_text()
    assert metrics["final/checks"] == 4 + 3 + 1 + 3
    assert metrics["final/checks_failed"] == 0
    assert metrics["final/rho_bag/1"] == pytest.approx(metrics["final/ceiling_bag"], abs=0.005)
    assert 0.85 < metrics["final/ceiling_token"] < 0.95
    assert "| detection |" in report


def test_a_text_that_is_too_short_is_an_error(
    run_crux: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        "calibration.fit_tokens=1024",
        "calibration.held_out_tokens=1024",
        "tracking=none",
        f"output_dir={tmp_path}",
    )
    assert run_crux("experiment=read/calibrate", *given) == 2
    assert "too few tokens to plant" in capsys.readouterr().err


def test_checks_fail_if_explanations_miss_their_ceiling_or_explain_shifted_codes() -> None:
    fit, held_out = (made_up_text(vocab=60, n_windows=n, context=64, seed=n, order_seed=0) for n in (300, 200))
    table = calibrate_scores(fit, held_out, no_classes(60), n_each=3, seed=0)
    assert len(table.planted) == 4
    failed = [check.what for check in calibration_checks(table) if not check.passed and "shifted" not in check.what]
    assert failed == []  # the null needs more tokens than this text has
    bad = table._replace(
        planted=[row._replace(shortfall={1: 0.1, 2: 0.1, 10: 0.1}) for row in table.planted],
        shifted=table.shifted._replace(shortfall={1: 0.1, 2: 0.1, 10: 0.1}, ap={1: 0.5, 2: 0.5, 10: 0.5}),
        sanity=[row._replace(missing=0.0, extra=0.5) for row in table.sanity],
    )
    assert sum(not check.passed for check in calibration_checks(bad)) == 4 + 3 + 1 + 2


def test_the_ceiling_is_the_correlation_of_the_code_with_its_condition() -> None:
    text = made_up_text(vocab=50, n_windows=50, context=32, seed=0, order_seed=0)
    conditions = Conditions(
        np.array([Kind.SUFFIX, Kind.WITHIN, Kind.SUFFIX]), np.array([[3, -1, -1], [5, 8, -1], [49, 49, 49]])
    )
    found = plant_codes(text.windows, text.begins, conditions, np.array([0, 1, 2]), no_classes(50), seed=0)
    holds = conditions.matches(text.windows, text.begins, no_classes(50)).toarray() > 0
    dense = found.codes.matrix().toarray()
    assert ((dense > 0) == holds).all()
    for i in (0, 1):
        assert found.ceiling[i] == pytest.approx(np.corrcoef(holds[:, i], dense[:, i])[0, 1], abs=1e-6)
        assert dense[holds[:, i], i].mean() == pytest.approx(1, abs=0.15)
        assert dense[holds[:, i], i].var() == pytest.approx(0.25, abs=0.15)
    assert np.isnan(found.ceiling[2])


def test_a_made_up_text_depends_on_the_token_before() -> None:
    text = made_up_text(vocab=50, n_windows=200, context=32, seed=0, order_seed=0)
    table = np.zeros((50, 50))
    np.add.at(table, (text.windows[:, :-1].ravel(), text.windows[:, 1:].ravel()), 1)
    share = np.sort(table / table.sum(1, keepdims=True), 1)[table.sum(1) > 50]
    assert share[:, -4:].sum(1).mean() > 0.5  # 0.31 if tokens were independent
    assert (share[:, -4:].sum(1) > 0.4).all()
    assert text.begins.reshape(text.windows.shape)[:, 1:].sum() == (text.windows[:, :-1] == 0).sum()
