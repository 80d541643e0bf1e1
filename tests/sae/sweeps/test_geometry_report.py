"""The geometry in a sweep's report: SAEs with planted similarities, found from the run folders of finished runs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from crux.config.schema import ReportGeometry
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.relu import ReluSAE
from crux.sae.formats.saelens import save_sae
from crux.sae.geometry.nearest import normalise_rows
from crux.sae.sweeps.geometry import CROSS_SEED, CROSS_TYPE, SAME_SEED
from crux.sae.sweeps.report import write_report
from tests.support.figures import find_panel, find_panels
from tests.support.saved_saes import METADATA
from tests.support.small_saes import make_random_sae

WIDTH, LATENTS = 128, 64
"""The packaged model's width, and latents per SAE: fewer than dimensions, so that all of them are alive and chance is low."""
TOKENS = 2048


def draw(seed: int, n: int = LATENTS) -> torch.Tensor:
    return normalise_rows(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)))


def make_sae(directions: torch.Tensor) -> ReluSAE:
    """Return an SAE with these decoder and encoder directions, whose latents fire on about half of the tokens."""
    sae = make_random_sae(d_model=WIDTH, n_latents=len(directions), seed=0)
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
        sae.b_enc.zero_()
    return sae


def write_run(
    sweep: Path, *, loss: str, seed: int, sae: ReluSAE, evaluation: int = TOKENS, cache: Path | None = None
) -> None:
    config = {
        "loss": {"name": loss}, "seed": seed, "sae": {"name": "relu"}, "hook_point": METADATA["hook_name"], "layer": 6,
        "model": {"path": None, "name": "tiny", "process_weights": False, "_target_": None, "n_layers": None, "context": 256},
        "data": {
            "column": None, "held_out_split": None, "max_tokens": None, "held_out_tokens": 100_000, "shuffle_batches": 16,
            "path": None, "split": None,
        },
        "evaluation": {"tokens": evaluation}, "trainer": {"batch": 4}, "cache": None if cache is None else str(cache),
    }  # fmt: skip
    folder = RunFolder.create(sweep / f"loss={loss},seed={seed}", config)
    folder.write_metrics({"final/l0": 10.0 + seed, "final/ce_increase": 0.1})
    save_sae(sae, folder.path / "sae", METADATA)
    folder.finish()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Four SAEs. `local`: the same dictionary with both seeds. `e2e`: half of it with seed 1, and nothing of it with seed 0."""
    sweep = tmp_path_factory.mktemp("planted")
    common = draw(0)
    write_run(sweep, loss="local", seed=0, sae=make_sae(common), cache=cache)
    write_run(sweep, loss="local", seed=1, sae=make_sae(common.flip(0)), cache=cache)
    write_run(sweep, loss="e2e", seed=0, sae=make_sae(draw(1)), cache=cache)
    write_run(
        sweep,
        loss="e2e",
        seed=1,
        sae=make_sae(torch.cat([common[: LATENTS // 2], draw(2)[: LATENTS // 2]])),
        cache=cache,
    )
    write_report(sweep, at=[20.0], geometry=ReportGeometry.pca)
    return sweep


def test_each_pair_is_in_the_file_with_its_relation_and_its_planted_similarity(planted: Path) -> None:
    pairs = pd.read_csv(planted / "geometry_pairs.csv").set_index(["kind_a", "seed_a", "kind_b", "seed_b"])
    assert pairs["relation"].to_dict() == {
        ("local", 0, "local", 1): CROSS_SEED, ("e2e", 0, "e2e", 1): CROSS_SEED, ("e2e", 0, "local", 0): SAME_SEED,
        ("e2e", 1, "local", 0): CROSS_TYPE, ("e2e", 0, "local", 1): CROSS_TYPE, ("e2e", 1, "local", 1): SAME_SEED,
    }  # fmt: skip
    same, half, nothing = (
        pairs.loc["local", 0, "local", 1],
        pairs.loc["e2e", 1, "local", 0],
        pairs.loc["e2e", 0, "local", 1],
    )
    for name in ("to_max_cos", "from_max_cos", "matched_cos", "shared_share", "code_correlation_matched"):
        assert same[name] == pytest.approx(1, abs=1e-5)
    assert same["code_correlation_chance_matched"] < 0.5
    assert half["shared_share"] == 0.5
    assert half["to_max_cos"] == pytest.approx((1 + nothing["to_max_cos"]) / 2, abs=0.02)
    assert nothing["shared_share"] == 0
    assert nothing["to_max_cos"] == pytest.approx(nothing["to_max_cos/isotropic"], abs=0.02)
    assert nothing["code_correlation_matched"] < 0.5


def test_the_table_of_differences_has_chance_levels_next_to_every_cosine(planted: Path) -> None:
    rows = pd.read_csv(planted / "geometry_differences.csv").set_index("measure")
    assert list(rows.index) == [f"within SAE, {LATENTS} latents", "cross-seed, both directions", "cross-seed, matched"]
    assert rows[["kind_a", "kind_b"]].to_numpy().tolist() == 3 * [["local", "e2e"]]
    cross = rows.loc["cross-seed, matched"]
    pairs = pd.read_csv(planted / "geometry_pairs.csv").query("relation == 'cross-seed'").set_index("kind_a")
    assert cross["difference_mean"] == pytest.approx(1 - pairs.loc["e2e", "matched_cos"], abs=1e-5)
    assert cross["within_pair_low"] < cross["difference_mean"] < cross["within_pair_high"]
    within = rows.iloc[0]
    assert within["difference_n"] == 4  # each seed of one with each of the other
    assert abs(within["difference_mean"]) < 0.03
    for level in ("isotropic", "shaped"):
        assert 0 < cross[f"mean_b/{level}"] < 1
        assert within[f"mean_a/{level}"] == within[f"mean_b/{level}"]
    report = (planted / "report.md").read_text("utf-8")
    assert "| cross-seed, matched | local − e2e |" in report
    assert "## Similarity of pairs of SAEs" in report
    assert "Latents are alive if they fire on one of 2,048 held-out tokens." in report
    assert all(f"](figures/{path.name})" in report for path in (planted / "figures").glob("geometry*.png"))


def test_the_view_has_the_coordinates_of_every_latent(planted: Path) -> None:
    coordinates = pd.read_csv(planted / "geometry_pca.csv")
    assert list(coordinates) == ["place", "pair", "sae", "latent", "x", "y"]
    assert set(coordinates["sae"]) == {"e2e, seed 1", "local, seed 0"}
    saes = pd.read_csv(planted / "geometry_saes.csv")
    assert saes["alive"].to_list() == 4 * [LATENTS]
    assert len(coordinates) == 2 * LATENTS
    assert {path.name for path in (planted / "figures").iterdir()} >= {"geometry_similarity.png", "geometry_pca.png"}


def test_a_second_report_without_geometry_removes_its_files(tmp_path: Path, planted: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(planted, copy)
    before = {path.name: path.read_bytes() for path in copy.rglob("geometry_*")}
    write_report(copy, at=[20.0], geometry=ReportGeometry.pca)
    assert {path.name: path.read_bytes() for path in copy.rglob("geometry_*")} == before
    write_report(copy, at=[20.0])
    assert not list(copy.rglob("geometry_*"))


def test_saes_that_hardly_fire_are_left_out_and_named(tmp_path: Path, cache: Path) -> None:
    sae = make_sae(draw(0))
    with torch.no_grad():
        sae.b_enc[3:] = -1e6
    write_run(tmp_path, loss="e2e", seed=0, sae=sae, cache=cache)
    write_run(tmp_path, loss="local", seed=0, sae=make_sae(draw(1)), cache=cache)
    report = write_report(tmp_path, at=[20.0], geometry=ReportGeometry.pca)
    assert report.remarks[0].startswith("`loss=e2e,seed=0`: fewer than 16 latents fire on 2,048 held-out tokens")
    assert report.tables["Similarity within SAEs"]["SAE"].tolist() == ["local"]
    assert "Similarity of pairs of SAEs" not in report.tables
    assert not (tmp_path / "figures" / "geometry_pca.png").exists()


def test_one_seed_compares_losses_with_the_same_first_dictionary_and_says_so(tmp_path: Path, cache: Path) -> None:
    for n, loss in enumerate(("local", "e2e")):
        write_run(tmp_path, loss=loss, seed=0, sae=make_sae(draw(n)), cache=cache)
    report = write_report(tmp_path, at=[20.0], geometry=ReportGeometry.pca)
    assert report.tables["Similarity of pairs of SAEs"]["pairs"].tolist() == [f"{SAME_SEED} (1)"]
    assert any("no cross-type pairs with different seeds" in remark for remark in report.remarks)


def test_a_sweep_without_saes_has_the_rest_of_its_report(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a", {"loss": {"name": "e2e"}, "sparsity": 1, "seed": 0})
    folder.write_metrics({"final/l0": 1.0, "final/ce_increase": 0.1})
    folder.finish()
    report = write_report(tmp_path, at=[20.0], geometry=ReportGeometry.pca)
    assert report.remarks == [
        f"The dictionaries are not compared: {tmp_path} has no SAE on a language model, so there are no dictionaries to compare"
    ]
    assert "Runs" in report.tables


def test_the_figure_shows_each_comparison(planted: Path) -> None:
    from crux.sae.sweeps.dictionaries import read_places
    from crux.sae.sweeps.finished_runs import read_finished_runs
    from crux.sae.sweeps.geometry import compare_place
    from crux.sae.sweeps.geometry_report import make_panels, plot_similarities

    (place,) = [compare_place(place) for place in read_places(planted, read_finished_runs(planted))]
    figure = plot_similarities(make_panels([place]))
    assert len(find_panels(figure)) == 4
    cross = find_panel(figure, title="cross-seed")
    means = sorted(float(np.asarray(line.get_xdata())[0]) for line in cross.lines if line.get_marker() == "^")
    assert means[1] == pytest.approx(1, abs=1e-5)  # local
    assert means[0] < 0.6  # e2e
    assert "signed" in cross.get_xlabel()


@pytest.mark.slow
def test_the_sweep_trains_and_compares(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ("sweeps=geometry", *short_job, "tracking=none", f"output_dir={tmp_path}", "evaluation.tokens=1024")
    assert run_crux(*line) == 0, capfd.readouterr().err
    folder = tmp_path / "sweeps" / "geometry"
    assert len(list(folder.glob("*/DONE"))) == 6
    pairs = pd.read_csv(folder / "geometry_pairs.csv")
    assert pairs["relation"].value_counts().to_dict() == {CROSS_SEED: 3, CROSS_TYPE: 6, SAME_SEED: 6}
    # after four steps the dictionaries are still those with which the training began: the same for all losses of a seed
    matched = {relation: group["matched_cos"].tolist() for relation, group in pairs.groupby("relation")}
    assert min(matched[SAME_SEED]) > 0.9 > max(matched[CROSS_TYPE])
    assert "Similarity within SAEs" in capfd.readouterr().out
