"""The tables of a sweep, from made-up run folders with round numbers."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from crux.config.errors import UserError
from crux.runs.run_folder import RunFolder
from crux.sae.sweeps.finished_runs import read_finished_runs, sweep_folder
from crux.sae.sweeps.l0_curves import build_curves
from crux.sae.sweeps.tables import (
    format_ratio,
    format_spread,
    match_losses,
    matched_numbers,
    matched_table,
    runs_numbers,
    runs_table,
    times_table,
)
from tests.support.made_up_runs import write_made_up_run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Return a sweep of two losses with two λ and two seeds; an unfinished and a failed run, which must be ignored, are in it too."""
    for seed in (0, 1):
        write_made_up_run(tmp_path, loss="local", sparsity=1, seed=seed, l0=30, ce=0.2 + 0.2 * seed)
        write_made_up_run(tmp_path, loss="local", sparsity=2, seed=seed, l0=10, ce=0.4 + 0.2 * seed)
        write_made_up_run(tmp_path, loss="e2e", sparsity=1, seed=seed, l0=30, ce=0.1)
        write_made_up_run(tmp_path, loss="e2e", sparsity=2, seed=seed, l0=10, ce=0.2)
    RunFolder.create(tmp_path / "unfinished", {"loss": {"name": "e2e"}, "sparsity": 9, "seed": 0})
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "FAILED").write_text("why\n")
    return tmp_path


def build_matched_table(folder: Path, at: Sequence[float]) -> pd.DataFrame:
    return matched_table(match_losses(build_curves(read_finished_runs(folder)), at=at))


def get_row(table: pd.DataFrame, row: int) -> dict[str, str]:
    """Return the cells of a row, by column title."""
    return table.iloc[row].to_dict()


def format_rows(table: pd.DataFrame) -> list[list[str]]:
    """Return the rows as they are printed."""
    return table.astype(str).to_numpy().tolist()


def test_the_table_has_one_row_per_loss_and_sparsity(sweep: Path) -> None:
    table = runs_table(read_finished_runs(sweep))
    settings = [["local", "λ=1", "2"], ["local", "λ=2", "2"], ["e2e", "λ=1", "2"], ["e2e", "λ=2", "2"]]
    assert [r[:3] for r in format_rows(table)] == settings
    assert get_row(table, 0)["CE loss increase"] == "0.3 (0.2 to 0.4)"


def test_matched_l0_is_interpolated_within_a_seed(sweep: Path) -> None:
    table = build_matched_table(sweep, [20, 50])
    found = get_row(table, 0)
    assert found["CE loss increase, local"] == "0.4 (0.3 to 0.5)"
    assert found["CE loss increase, e2e"] == "0.15 (0.15 to 0.15)"
    assert found["e2e / local"] == "0.375 (0.3 to 0.5)"  # of means 0.15/0.4; seeds 0.15/0.3 and 0.15/0.5
    assert format_rows(table)[1] == ["50", "–", "–", "–"]
    exact = matched_numbers(match_losses(build_curves(read_finished_runs(sweep)), at=[20]))
    assert [row[:3] for row in format_rows(exact)] == [["20", "local", "2"], ["20", "e2e", "2"]]
    assert get_row(exact, 1)["baseline"] == "local"
    assert get_row(exact, 1)["ratio"] == pytest.approx(0.375)
    assert pd.isna(get_row(exact, 1)["ratio_ci95_low"]), "two seeds have no bootstrap interval"


def test_a_ratio_has_an_interval_with_five_seeds_or_more(tmp_path: Path) -> None:
    for seed in range(5):
        for loss, ce in (("local", 0.4), ("e2e", 0.2 + 0.01 * seed)):
            for l0 in (10, 30):
                write_made_up_run(tmp_path, loss=loss, sparsity=l0, seed=seed, l0=l0, ce=ce)
    words = get_row(build_matched_table(tmp_path, [20]), 0)["e2e / local"]
    assert words.startswith("0.55 (0.5 to 0.6; 95 %: 0.5")


def test_one_loss_and_one_seed_have_no_ratio(tmp_path: Path) -> None:
    write_made_up_run(tmp_path, loss="e2e", sparsity=1, l0=30, ce=0.1)
    assert match_losses(build_curves(read_finished_runs(tmp_path)), at=[30]) == [], "one run is no curve"
    write_made_up_run(tmp_path, loss="e2e", sparsity=2, l0=10, ce=0.2)
    table = build_matched_table(tmp_path, [20])
    assert (list(table), format_rows(table)) == (["L0", "CE loss increase, e2e"], [["20", "0.15"]])


def test_curves_of_topk_are_over_k_and_hook_points_and_architectures_are_separate(tmp_path: Path) -> None:
    for layer in (2, 10):
        for sae in ("topk", "batch_topk"):
            for loss, ce in (("e2e", 0.1), ("e2e_ds", 0.05)):
                for k in (8, 16, 32):
                    write_made_up_run(tmp_path, loss=loss, sparsity=0, k=k, layer=layer, sae=sae, l0=k, ce=ce * layer)
    table = build_matched_table(tmp_path, [20])
    assert list(table)[:3] == ["hook point", "architecture", "L0"]
    places = [(row[0].split(".")[1], row[1]) for row in format_rows(table)]
    assert places == [("2", "batch_topk"), ("2", "topk"), ("10", "batch_topk"), ("10", "topk")]
    assert [row[-3:] for row in format_rows(table)] == [["0.2", "0.1", "0.5"]] * 2 + [["1", "0.5", "0.5"]] * 2
    assert list(table)[-1] == "e2e_ds / e2e", "the first that is there of local, e2e, e2e_ds"


def test_losses_with_different_coefficients_are_separate(tmp_path: Path) -> None:
    for kl in (0.5, 1.0):
        for l0 in (10, 30):
            write_made_up_run(tmp_path, loss="e2e", sparsity=l0, l0=l0, ce=kl, more={"loss": {"name": "e2e", "kl": kl}})
    assert list(build_matched_table(tmp_path, [20]))[1:3] == [
        "CE loss increase, e2e loss.kl=0.5",
        "CE loss increase, e2e loss.kl=1.0",
    ]


def test_a_sweep_without_finished_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished runs"):
        read_finished_runs(tmp_path)
    (tmp_path / "sweeps" / "pareto").mkdir(parents=True)
    with pytest.raises(UserError, match=r"sweep=paretto: no such sweep in .*; did you mean pareto\? there are pareto"):
        sweep_folder(tmp_path, "paretto")


def test_spreads_and_missing_values_as_text() -> None:
    assert format_spread([]) == "–"
    assert format_spread([0.25]) == "0.25"
    assert format_spread([1, 2, 3]) == "2 (1 to 3)"
    assert format_ratio(None) == "–"


def test_runs_that_differ_in_anything_are_not_pooled_as_seeds(tmp_path: Path) -> None:
    for n, lr in enumerate((0.1, 0.2)):
        config = {"loss": {"name": "e2e"}, "sparsity": 1, "seed": 0, "optimizer": {"lr": lr}}
        folder = RunFolder.create(tmp_path / "deep" / str(n), config)
        folder.write_metrics(
            {"final/l0": 10.0, "final/ce_increase": lr}
        )  # as for several SAEs, some metrics are missing
        folder.finish()
    table = runs_table(read_finished_runs(tmp_path))
    assert list(table)[:3] == ["loss", "optimizer.lr", "seeds"]
    assert [row[1:3] for row in format_rows(table)] == [["0.1", "1"], ["0.2", "1"]]
    assert list(table)[3:] == ["L0", "CE loss increase"]  # no column without values
    lines = runs_numbers(read_finished_runs(tmp_path)).to_csv(index=False).splitlines()
    assert lines == [
        "run,loss.name,optimizer.lr,seed,sparsity,final/ce_increase,final/l0",
        "deep/0,e2e,0.1,0,1,0.1,10.0",
        "deep/1,e2e,0.2,0,1,0.2,10.0",
    ]


def test_times_are_relative_to_the_e2e_run_with_the_same_settings(tmp_path: Path) -> None:
    rates = {("e2e", 2): 100.0, ("e2e", 4): 50.0, ("local", 2): 200.0, ("local", 4): 200.0}
    for (loss, layer), rate in rates.items():
        write_made_up_run(tmp_path, loss=loss, layer=layer, l0=10, ce=0.1, metrics={"final/tokens_per_second": rate})
    table = times_table(read_finished_runs(tmp_path))
    assert [(row[0], row[1].split(".")[1], row[-2], row[-1]) for row in format_rows(table)] == [
        ("local", "2", "200", "0.5"), ("local", "4", "200", "0.25"), ("e2e", "2", "100", "1"), ("e2e", "4", "50", "1"),
    ]  # fmt: skip


def test_a_key_that_an_option_does_not_have_is_like_a_null_one(tmp_path: Path) -> None:
    """Runs of older versions wrote every key."""
    for name, config in {
        "old": {"task": "train", "loss": {"name": "local", "kl": None}, "sae": {"name": "topk", "k": 8, "alpha": None}},
        "new": {"loss": {"name": "local"}, "sae": {"name": "topk", "k": 8}},
    }.items():
        folder = RunFolder.create(tmp_path / name, config | {"seed": 0, "optimizer": {"lr": 0.1}})
        folder.write_metrics({"final/l0": 8.0, "final/ce_increase": 0.5})
        folder.finish()
    runs = read_finished_runs(tmp_path)
    assert format_rows(runs_table(runs).drop(columns="task")) == [["local", "1", "8", "0.5"]] * 2
    assert runs.settings["λ, k or target L0"].tolist() == ["k=8", "k=8"]


def test_experiments_without_a_loss_are_distinguished_by_name(tmp_path: Path) -> None:
    for name in ("kgon", "linear"):
        folder = RunFolder.create(tmp_path / name, {"seed": 0, "llc": {"experiment": name, "draws": 800}})
        folder.write_metrics({"final/checks": 4.0})
        folder.finish()
    table = runs_table(read_finished_runs(tmp_path))
    assert list(table) == ["experiment", "seeds", "checks"]
    assert table["experiment"].tolist() == ["kgon", "linear"]
