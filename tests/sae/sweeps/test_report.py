"""The report of a sweep, for sweeps of all kinds of jobs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from crux.runs.run_folder import RunFolder
from crux.sae.sweeps.figures import plot_sweep
from crux.sae.sweeps.finished_runs import read_finished_runs
from crux.sae.sweeps.l0_curves import build_curves
from crux.sae.sweeps.report import write_report
from tests.support.figures import find_line, find_panel, find_panels, points
from tests.support.made_up_runs import write_made_up_run

AT = [20.0, 25.0]


def make_sweep(
    folder: Path, *, losses: tuple[str, ...], seeds: int, sparsities: int, layers: tuple[int, ...] = (6,)
) -> None:
    """Write finished runs of a network with 8 blocks: the n-th λ has L0 30 − 10 n and CE loss increase 0.1 + n/10."""
    for loss in losses:
        for layer in layers:
            for seed in range(seeds):
                for n in range(sparsities):
                    later = {
                        "final/mse": 1.0 + n, "final/downstream_mse/7": 2.0 + n, "final/downstream_mse/8": 3.0 + n,
                        "final/downstream_ev/7": 0.4 + seed / 100, "final/downstream_ev/8": 0.3, "final/alive_heldout_1000": 50.0 - n,
                        "final/alive_heldout_1000_frac": 0.5,
                    }  # fmt: skip
                    write_made_up_run(
                        folder,
                        loss=loss,
                        sparsity=n,
                        seed=seed,
                        layer=layer,
                        l0=30 - 10 * n,
                        ce=0.1 + n / 10,
                        metrics=later,
                    )


SWEEPS = {
    "of losses": {"losses": ("local", "e2e"), "seeds": 2, "sparsities": 3},
    "of one loss and one seed": {"losses": ("e2e",), "seeds": 1, "sparsities": 2},
    "of one run": {"losses": ("e2e",), "seeds": 1, "sparsities": 1},
    "of layers": {"losses": ("local", "e2e_ds", "fisher"), "seeds": 1, "sparsities": 1, "layers": (2, 4, 6)},
}


@pytest.mark.parametrize("which", SWEEPS)
def test_the_same_folders_give_the_same_report_byte_for_byte(which: str, tmp_path: Path) -> None:
    make_sweep(tmp_path, **SWEEPS[which])  # pyright: ignore[reportArgumentType]

    def write_and_read() -> dict[str, bytes]:
        write_report(tmp_path, at=AT)
        files = [*tmp_path.glob("*.md"), *tmp_path.glob("*.csv"), *tmp_path.glob("figures/*")]
        return {path.name: path.read_bytes() for path in files}

    first = write_and_read()
    assert first == write_and_read()
    figures = {"pareto_l0.png", "pareto_alive.png", "downstream.png"}
    compared = {"matched.csv"} if SWEEPS[which]["sparsities"] > 1 else set()  # pyright: ignore[reportOperatorIssue]
    assert first.keys() == {"report.md", "runs.csv"} | figures | compared
    report = first["report.md"].decode()
    assert all(f"figures/{name}" in report for name in figures)
    assert ("## At equal L0" in report) == bool(compared)
    assert ("There is no matched.csv" in report) == (not compared)


def test_the_figures_show_the_runs(tmp_path: Path) -> None:
    make_sweep(tmp_path, losses=("local", "e2e"), seeds=2, sparsities=3)
    figures = plot_sweep(build_curves(read_finished_runs(tmp_path)), at=AT)
    axes = find_panel(figures["pareto_l0"])
    assert len(axes.lines) == 2 * (2 + 1)  # the seeds and their mean, of each loss
    assert points(axes.lines[2]).tolist() == [[10, pytest.approx(0.3)], [20, 0.2], [30, 0.1]]
    assert "nats per token" in axes.get_ylabel()
    alive = find_panel(figures["pareto_alive"])
    assert alive.get_xlabel() == "alive latents (fire in 1,000 held-out tokens)"
    left, right = find_panel(figures["downstream"], y="MSE"), find_panel(figures["downstream"], y="explained variance")
    assert find_line(left, "e2e, L0 20")
    assert points(find_line(left, "local, L0 20")).tolist() == [[6, 2], [7, 3], [8, 4]]  # n = 1 is at L0 20
    assert points(find_line(right, "local, L0 20"))[:, 1] == pytest.approx([0.5, 0.405, 0.3])


def test_each_hook_point_has_its_own_panel(tmp_path: Path) -> None:
    make_sweep(tmp_path, losses=("local", "e2e"), seeds=1, sparsities=1, layers=(2, 4, 6))
    figures = plot_sweep(build_curves(read_finished_runs(tmp_path)), at=AT)
    titles = [axes.get_title(loc="left") for axes in find_panels(figures["pareto_l0"])]
    assert titles == [f"blocks.{layer}.hook_resid_pre" for layer in (2, 4, 6)]
    for place in titles:
        left = find_panel(figures["downstream"], title=place, y="MSE")
        assert find_line(left, "local, L0 30 (λ=0)")
        assert find_line(left, "e2e, L0 30 (λ=0)")
    assert len(find_panels(figures["downstream"], y="explained variance")) == 3


def test_the_report_says_why_losses_have_no_ratio(tmp_path: Path) -> None:
    for loss, l0s in (("local", (10, 15)), ("e2e", (30, 40))):
        for l0 in l0s:
            write_made_up_run(tmp_path, loss=loss, sparsity=l0, l0=l0, ce=0.1)
    write_report(tmp_path, at=AT)
    assert "There is no ratio between losses: at none of the L0 values 20, 25" in (tmp_path / "report.md").read_text(
        "utf-8"
    )


def test_runs_without_an_l0_are_only_in_the_table(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", {"loss": {"name": "e2e"}, "sparsity": 1, "seed": 0})
    folder.write_metrics({"final/bits_per_byte/kjv": 1.0})
    folder.finish()
    write_report(tmp_path, at=AT)
    assert not list((tmp_path / "figures").iterdir())
    assert "final/bits_per_byte/kjv" in (tmp_path / "runs.csv").read_text()


def test_the_command_writes_the_report_again(
    run_crux: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweeps" / "made"
    make_sweep(folder, losses=("local", "e2e"), seeds=2, sparsities=3)
    assert run_crux("experiment=report", "sweep=made", "report_l0=[20]", f"output_dir={tmp_path}") == 0
    assert "e2e / local" in capfd.readouterr().out
    assert {p.name for p in folder.glob("*.*")} == {"report.md", "runs.csv", "matched.csv"}
    assert not (tmp_path / "mlflow.db").exists()
    assert not list(tmp_path.rglob("FAILED"))


def test_toy_models_have_their_own_columns(tmp_path: Path) -> None:
    for seed in (0, 1):
        config = {"loss": {"name": "e2e_ds"}, "sparsity": 1.0, "seed": seed, "toy": {"experiment": "geometry"}}
        folder = RunFolder.create(tmp_path / f"seed={seed}", config)
        folder.write_metrics({"final/checks": 4.0, "final/checks_failed": float(seed)})
        folder.finish()
    table = write_report(tmp_path, at=AT).tables
    assert list(table) == ["Runs"]
    assert list(table["Runs"]) == ["experiment", "seeds", "checks", "checks failed"]
    assert table["Runs"].astype(str).to_numpy().tolist() == [["geometry", "2", "4 (4 to 4)", "0.5 (0 to 1)"]]


def test_saes_on_toy_models_show_the_features_that_they_recover(tmp_path: Path) -> None:
    for loss in ("local", "e2e"):
        config = {"loss": {"name": loss}, "sparsity": 1.0, "seed": 0, "hook_point": "hook_hidden"}
        folder = RunFolder.create(tmp_path / loss, config)
        folder.write_metrics({"final/l0": 1.0, "final/recovered": 0.8, "final/loss_increase": 0.1})
        folder.finish()
    table = write_report(tmp_path, at=AT).tables["Runs"]
    assert list(table) == ["loss", "seeds", "L0", "network's loss increase", "features recovered"]
    assert table["loss"].tolist() == ["local", "e2e"]
