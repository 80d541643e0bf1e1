"""experiment=toy/absorption: its files, the control without a hierarchy, and repeatability."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from crux.sae.reading.absorption import measure_absorption
from crux.toy.absorption_job import Trained, absorption_result
from crux.toy.hierarchy import make_hierarchy

SHORT = ("experiment=toy/absorption", "tracking=none", "hierarchy.sparsities=[0.2]", "hierarchy.seeds=3")


def test_the_hierarchy_makes_saes_absorb_and_hedge(run_crux: Callable[..., int], tmp_path: Path) -> None:
    assert run_crux(*SHORT, f"output_dir={tmp_path}") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["final/checks"], metrics["final/checks_failed"]) == (2, 0)
    assert metrics["final/absorbed/hierarchy/0.2"] > metrics["final/absorbed/independent/0.2"] + 0.05
    assert "| independent | 0.2 |" in (folder / "report.md").read_text()
    assert {path.stem for path in (folder / "figures").iterdir()} == {"absorbed", "hedging"}


def test_children_are_as_frequent_without_a_hierarchy_but_independent() -> None:
    hierarchy = make_hierarchy(n_pairs=3, parent_density=0.3, child_share=0.5)
    present, _ = hierarchy._replace(implied=False).draw(40_000, torch.Generator().manual_seed(0))
    share = present.float().mean(0)
    torch.testing.assert_close(share, torch.tensor([0.3, 0.15] * 3), atol=0.01, rtol=0)
    for child, parent in hierarchy.pairs:
        both = float((present[:, child] & present[:, parent]).float().mean())
        assert both == pytest.approx(0.3 * 0.15, abs=0.006)
    with pytest.raises(ValueError, match="is on without feature"):
        measure_absorption(
            present.numpy(), present.numpy(), directions=torch.eye(6).numpy(), dictionary=torch.eye(6).numpy(),
            pairs=hierarchy.pairs,
        )  # fmt: skip


def test_means_deviations_and_checks_of_known_values() -> None:
    def row(kind: str, seed: int, absorbed: float) -> Trained:
        return Trained(kind, 0.5, seed, absorbed, 0.0, float("nan"), 0.0, hedging=absorbed)

    rows = [row("hierarchy", 0, 0.5), row("hierarchy", 1, 0.7), row("independent", 0, 0.1), row("independent", 1, 0.1)]
    result = absorption_result(rows, sparsities=[0.5])
    assert result.metrics["absorbed/hierarchy/0.5"] == pytest.approx(0.6)
    assert result.metrics["missed_without_child/hierarchy/0.5"] is None
    assert "0.600 ± 0.141" in result.report
    check = result.checks[0]
    assert (check.value, check.low) == (pytest.approx(0.5), pytest.approx(0.2))  # 2 √(.02 / 2)
    assert check.passed
    equal = [one._replace(absorbed=0.1, hedging=0.1) for one in rows]
    assert not any(check.passed for check in absorption_result(equal, sparsities=[0.5]).checks)
    worse = [one._replace(absorbed=0.05 * one.seed) for one in rows]
    assert not absorption_result(worse, sparsities=[0.5]).checks[0].passed


def test_mistakes_are_one_line(error_message: Callable[..., str]) -> None:
    for key, value in (("seeds", "1"), ("parent_density", "2"), ("pairs", "0")):
        assert f"hierarchy.{key}" in error_message("experiment=toy/absorption", f"hierarchy.{key}={value}")
