"""Scores of latents next to those of controls, on planted codes."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from crux.sae.reading.control_scores import (
    WITHOUT_LIMIT,
    ControlRow,
    compare_with_controls,
    describe_indistinct,
    find_percentiles,
    score_together,
)
from crux.sae.reading.controls import Control, make_shifted_control, select_latents
from crux.sae.reading.fit_text import prepare_fit
from crux.sae.reading.harvest import Harvest, ReadText, find_text_begins
from crux.sae.reading.percentiles import ControlComparison
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.token_classes import no_classes

RNG = np.random.default_rng(0)


def make_text(n_windows: int) -> ReadText:
    """Return a text of 40 tokens in which latent i fires at token i, with noisy strength; latent 5 fires at random, latent 6 never."""
    windows = RNG.integers(0, 40, (n_windows, 32))
    fires = windows.reshape(-1, 1) == np.arange(7)
    fires[:, 5], fires[:, 6] = RNG.random(windows.size) < 0.02, False
    matrix = scipy.sparse.csr_matrix((fires * RNG.gamma(4, 0.25, fires.shape)).astype(np.float32))
    codes = SparseCodes(matrix.indptr.astype(np.int64), matrix.indices, matrix.data, 7)
    return ReadText(windows, find_text_begins(windows, None), codes, None)


HARVEST = Harvest(make_text(200), make_text(150), None, Path())
TEXT = prepare_fit(HARVEST.fit.windows, HARVEST.fit.begins, no_classes(40))
LATENTS = np.array([0, 2, 3, 5])


def test_latents_stand_out_from_the_null_and_not_from_themselves() -> None:
    same = Control(
        "same", LATENTS, select_latents(HARVEST.fit.codes, LATENTS), select_latents(HARVEST.held_out.codes, LATENTS)
    )
    together = [same, make_shifted_control(HARVEST, LATENTS)]
    _, ours, controls = score_together(TEXT, HARVEST, together, sizes=[1, 3])
    rows = {
        (row.control, row.score, row.n_rules): row.comparison
        for row in compare_with_controls(ours, controls, stands_for=LATENTS)
    }
    assert len(rows) == 2 * 7
    for (control, score, _), found in rows.items():
        assert found.n == 4
        if control == "same":
            assert found.difference == pytest.approx(0, abs=1e-12)
        if control == "shifted" and score == "rho":
            assert abs(found.controls) < 0.03
    token = rows["shifted", "rho", 1].latents
    assert token == pytest.approx((3 * 0.89 + 0) / 4, abs=0.03)  # the noise limits a perfect rule to 0.89, chance is 0
    assert rows["shifted", "ap", 1].controls < 0.05 < 0.7 < rows["shifted", "ap", 1].latents
    percentiles = find_percentiles(ours, controls["shifted"], score="rho", n_rules=1)
    assert (percentiles[:5] == 100).all()
    assert np.isnan(percentiles[6])
    warnings = describe_indistinct(compare_with_controls(ours, controls, stands_for=LATENTS))
    assert len(warnings) == 3
    assert all("control same" in line for line in warnings)


def test_explaining_dictionaries_together_gives_what_explaining_each_gives() -> None:
    control = make_shifted_control(HARVEST, LATENTS)
    rules, ours, controls = score_together(TEXT, HARVEST, [control], sizes=[2])
    alone, theirs, _ = score_together(TEXT, HARVEST, [], sizes=[2])
    of_control, shifted, _ = score_together(TEXT, control.harvest(HARVEST), [], sizes=[2])
    for key, values in ours.by_size().items():
        np.testing.assert_allclose(values, theirs.by_size()[key], rtol=1e-12)
    np.testing.assert_allclose(controls["shifted"].rules.rho, shifted.rules.rho, rtol=1e-9, atol=1e-12)
    assert len(of_control[2].base) == len(LATENTS)
    for name in ("indptr", "value", "increment", "counts", "base", "mass"):
        np.testing.assert_allclose(getattr(rules[2], name), getattr(alone[2], name), rtol=1e-12, atol=1e-12)


def test_a_warning_names_the_score_and_its_uncertainty() -> None:
    def row(difference: float, error: float, n_rules: int = WITHOUT_LIMIT, score: str = "rho") -> ControlRow:
        return ControlRow(
            "whitened", score, n_rules, ControlComparison(40, 0.636, 0.636 - difference, difference, error)
        )

    assert describe_indistinct([row(0.004, 0.01)]) == [
        "with any number of rules, the correlation is 0.636 for latents and 0.632 for the control whitened (+0.004 ± 0.010): "
        "this score does not tell the latents from the control"
    ]
    assert describe_indistinct([row(0.2, 0.01), row(float("nan"), 0.1), row(0.0, 0.1, score="ap")]) == []
    assert len(describe_indistinct([row(0.2, 0.11), row(-0.3, 0.01, n_rules=1)])) == 2
