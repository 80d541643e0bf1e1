"""The report of a sweep, from made-up run folders with round numbers."""

from pathlib import Path

import pytest

from crux.compare import finished_runs, matched_table, runs_table, spread
from crux.tracking.run_folder import RunFolder


def made_up_run(sweep: Path, *, loss: str, sparsity: float, seed: int, l0: float, ce: float) -> None:
    config = {"loss": {"name": loss}, "sparsity": sparsity, "seed": seed}
    folder = RunFolder.create(sweep / f"{loss}{sparsity}{seed}", config)
    others = {f"final/{k}": 0.5 for k in ("kl", "explained_variance", "loss_recovered_mean", "norm_ratio")}
    folder.write_metrics(others | {"final/l0": l0, "final/ce_increase": ce})
    folder.finish()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed in (0, 1):
        made_up_run(tmp_path, loss="local", sparsity=1, seed=seed, l0=30, ce=0.2 + 0.2 * seed)
        made_up_run(tmp_path, loss="local", sparsity=2, seed=seed, l0=10, ce=0.4 + 0.2 * seed)
        made_up_run(tmp_path, loss="e2e", sparsity=1, seed=seed, l0=30, ce=0.1)
        made_up_run(tmp_path, loss="e2e", sparsity=2, seed=seed, l0=10, ce=0.2)
    RunFolder.create(tmp_path / "unfinished", {"loss": {"name": "e2e"}, "sparsity": 9, "seed": 0})
    return tmp_path


def test_a_line_a_loss_and_sparsity(sweep: Path) -> None:
    header, rows = runs_table(finished_runs(sweep))
    asked = [["e2e", "λ=1", "2"], ["e2e", "λ=2", "2"], ["local", "λ=1", "2"], ["local", "λ=2", "2"]]
    assert [r[:3] for r in rows] == asked
    assert dict(zip(header, rows[2], strict=True))["CE loss increase"] == "0.3 (0.2 to 0.4)"


def test_matched_l0_is_interpolated_within_a_seed_and_the_ratio_is_seed_by_seed(sweep: Path) -> None:
    header, (inside, outside) = matched_table(finished_runs(sweep), at=[20, 50])
    found = dict(zip(header, inside, strict=True))
    assert found["CE loss increase, local"] == "0.4 (0.3 to 0.5)"
    assert found["CE loss increase, e2e"] == "0.15 (0.15 to 0.15)"
    assert found["e2e / local"] == "0.4 (0.3 to 0.5)"  # 0.15/0.3 and 0.15/0.5
    assert outside == ["50", "–", "–", "–"]


def test_a_sweep_without_finished_runs_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished runs"):
        finished_runs(tmp_path)


def test_spread() -> None:
    assert spread([]) == "–"
    assert spread([0.25]) == "0.25"
    assert spread([1, 2, 3]) == "2 (1 to 3)"
