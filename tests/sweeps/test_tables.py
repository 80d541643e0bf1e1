"""The report of a sweep, from made-up run folders with round numbers."""

from pathlib import Path

import pytest

from crux.sweeps.runs import finished_runs
from crux.sweeps.tables import matched_table, runs_table, spread
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


def test_runs_that_differ_in_anything_are_not_pooled_as_seeds(tmp_path: Path) -> None:
    for n, lr in enumerate((0.1, 0.2)):
        config = {"loss": {"name": "e2e"}, "sparsity": 1, "seed": 0, "optimizer": {"lr": lr}}
        folder = RunFolder.create(tmp_path / "deep" / str(n), config)
        folder.write_metrics(
            {"final/l0": 10.0, "final/ce_increase": lr}
        )  # as of several SAEs: not every metric is there
        folder.finish()
    header, rows = runs_table(finished_runs(tmp_path))
    assert header[:3] == ["loss", "optimizer.lr", "seeds"]
    assert [row[1:3] for row in rows] == [["0.1", "1"], ["0.2", "1"]]
    assert rows[0][header.index("norm ratio")] == "–"


def test_times_are_against_the_e2e_run_of_the_same_place(tmp_path: Path) -> None:
    rates = {("e2e", "a"): 100.0, ("e2e", "b"): 50.0, ("local", "a"): 200.0, ("local", "b"): 200.0}
    for (loss, hook), rate in rates.items():
        config = {"loss": {"name": loss}, "sparsity": 1, "seed": 0, "hook_point": hook}
        folder = RunFolder.create(tmp_path / f"{loss}{hook}", config)
        folder.write_metrics({"final/l0": 10.0, "final/ce_increase": 0.1, "final/tokens_per_second": rate})
        folder.finish()
    header, rows = runs_table(finished_runs(tmp_path))
    time = header.index("time / e2e")
    assert [(row[0], row[1], row[time]) for row in rows] == [
        ("e2e", "a", "1"), ("e2e", "b", "1"), ("local", "a", "0.5"), ("local", "b", "0.25"),
    ]  # fmt: skip
