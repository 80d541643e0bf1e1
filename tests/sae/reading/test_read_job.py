"""experiment=read on the command line: its files, its tables, a resumed run, two SAEs, and what it refuses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from crux.sae.figures.reading_figures import draw_reading
from crux.sae.reading import read_latents, use_section
from crux.sae.reading.section import Section, compute_section_once, no_features
from crux.sae.reading.steering import COLUMNS
from crux.sae.reading.use_section import steering_cells
from tests.support.small_readings import read_report_table

SMALL = (
    "experiment=read", "tracking=none", "trainer.progress=false", "model.context=64", "batch=8", "reading.fit_tokens=8192",
    "reading.held_out_tokens=4096", "reading.n_rules=3", "report_sizes=[1]", "reading.controls=4",
    "reading.influence_windows=4", "reading.influence_draws=2", "reading.ablations=4", "reading.effects=3",
    "reading.rewriting_tokens=512", "reading.residual_tokens=512", "reading.steered=1",
    "reading.probing=200", "reading.saebench_tokens=512", "reading.meta_sae_steps=5",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_contexts() -> Iterator[None]:
    """Steer and measure effects in few contexts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("STEERING_WINDOWS", 6), ("POOL_WINDOWS", 32), ("CONTEXTS", 8)):
            patch.setattr(use_section, name, value)
        yield


@pytest.fixture(scope="module")
def read(run_crux: Callable[..., int], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a reading of this SAE, against itself."""
    place = tmp_path_factory.mktemp("read")
    assert run_crux(*SMALL, f"sae.path={trained}", f"against={trained / 'sae'}", f"output_dir={place}") == 0
    (folder,) = (place / "runs").iterdir()
    return folder


def test_every_part_has_its_columns(read: Path) -> None:
    features = pd.read_parquet(read / "features.parquet")
    assert list(features.index) == list(range(64))
    for name in (
        "density",
        "rho@1",
        "rho@3",
        "ceiling_rho",
        "influence",
        "use_per_energy",
        "promoted",
        "nearest_cosine",
        "rules",
    ):
        assert bool(features[name].notna().to_numpy().any()), name
    largest = int(
        features["influence"].to_numpy().argmax()
    )  # the latents with the largest influence are ablated exactly, too
    assert not np.isnan(features["influence_exact"].to_numpy()[largest])
    scored = features["firings_held_out"] >= 50
    assert features.loc[~scored, "rho@3"].isna().all()
    assert (features.loc[scored, "rho@3"] <= 1).all()
    np.testing.assert_allclose(features["density"], features["firings_held_out"] / 4096)
    alive = np.flatnonzero(features["firings_held_out"] > 0)
    # compared with itself, every latent is its own partner
    np.testing.assert_array_equal(features["matched_latent"].to_numpy()[alive], alive)
    np.testing.assert_allclose(features["matched_cosine"].to_numpy()[alive], 1, atol=1e-5)


def test_metrics_report_figures_and_page(read: Path) -> None:
    metrics = json.loads((read / "metrics.json").read_text())
    assert {
        "final/rho@3",
        "final/influence_total",
        "final/residual/rho_iso",
        "final/rewritten_recovered@3",
    } <= metrics.keys()
    assert metrics["final/matched_cos"] == pytest.approx(1, abs=1e-5)
    assert metrics["final/matched_code_correlation"] == pytest.approx(1, abs=1e-5)
    assert abs(metrics["final/matched_code_correlation/shifted"]) < 0.5
    assert (metrics["final/split_share"], metrics["final/child_share"]) == (0, 1)
    meta = [metrics[f"final/meta_sae_explained{level}"] for level in ("", "/isotropic", "/shaped")]
    assert all(0 < share < 1 for share in meta)
    assert metrics["final/use/isotropic"] == pytest.approx(1)
    report = (read / "report.md").read_text()
    for heading in (
        "What activates the latents",
        "Steering at an equal KL budget",
        "Rewritten CE",
        "residual error",
        "chance levels",
    ):
        assert heading in report
    isotropic = next(
        row for row in read_report_table(report, "Use per unit of energy") if row["vectors"] == "isotropic"
    )
    assert [
        float(isotropic[f"top {k} by {kind}"]) for kind in ("read", "variance") for k in (1, 4, 16)
    ] == pytest.approx([1 / 128, 4 / 128, 16 / 128] * 2, rel=1e-3)  # k of the 128 dimensions
    directions = read_report_table(report, "Single directions")
    assert {"pca_0", "pos0_mean", "random_0"} <= {row["name"] for row in directions}
    assert {path.stem for path in (read / "figures").iterdir()} == {"scores", "influence", "rewriting", "residual"}
    page = (read / "latents.html").read_text()
    assert "<script" in page
    assert not (read / "pieces").exists()


def test_an_interrupted_reading_is_continued(
    run_crux: Callable[..., int], trained: Path, read: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts that are done are not computed again, and the result is that of an uninterrupted reading, bit for bit."""
    words = (*SMALL, f"sae.path={trained}", f"against={trained / 'sae'}", f"output_dir={tmp_path}")

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(read_latents, "describe_rewriting", stop)
        assert run_crux(*words) == 130
    for name in ("describe_activation", "describe_steering"):
        monkeypatch.setattr(read_latents, name, stop)
    assert run_crux(*words, "resume=true") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "features.parquet"), pd.read_parquet(read / "features.parquet"), check_exact=True
    )
    assert (folder / "report.md").read_text() == (read / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sae.path=nowhere"], "sae.path=nowhere: no such folder"),
        (["sae.path={trained}/checkpoints"], "holds no SAE: it has no cfg.json"),
        (["sae.path={trained}", "against=nowhere"], "against=nowhere: no such folder"),
        (["sae.path={trained}", "reading.influence_draws=3"], "reading.influence_draws=3: must be even"),
        (["sae.path={trained}", "hook_point=blocks.2.hook_resid_pre"], "reads blocks.6.hook_resid_pre, not blocks.2"),
        (["sae.path={trained}", "model.process_weights=true"], "sae.force=true uses it nevertheless"),
        ([], "sae.path"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, trained: Path, error_message: Callable[..., str]
) -> None:
    assert message in error_message(
        "experiment=read", "tracking=none", *(word.format(trained=trained) for word in words)
    )


def test_a_section_is_computed_once_and_again_if_its_files_are_damaged(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> Section:
        calls.append(1)
        features = pd.DataFrame({"a": [1.0, np.nan]}, index=pd.RangeIndex(2, name="latent"))
        return Section(features, {"t": pd.DataFrame({"x": [1], "y": ["a"]})}, {"m": 0.1})

    first = compute_section_once(tmp_path, "part", compute)
    second = compute_section_once(tmp_path, "part", compute)
    assert len(calls) == 1
    pd.testing.assert_frame_equal(first.features, second.features)
    pd.testing.assert_frame_equal(first.tables["t"], second.tables["t"])
    assert second.metrics == {"m": 0.1}
    (tmp_path / "part" / "metrics.json").write_text("{")
    compute_section_once(tmp_path, "part", compute)
    assert len(calls) == 2


def test_directions_that_miss_the_budget_are_left_out_of_the_means() -> None:
    """Of three directions with consistencies .2, .4 and .9, the last one spends twice the budget."""
    table = pd.DataFrame(0.0, index=range(3), columns=list(COLUMNS)).assign(kind="latent", budget=0.1, onward=False)
    table["consistency"], table["kl_fit"] = [0.2, 0.4, 0.9], [0.1, 0.104, 0.2]
    (row,) = steering_cells(table, budget=0.1).to_dict("records")
    assert (row["directions"], row["n"], row["missed"]) == ("latent", 2, 1)
    assert row["consistency"] == "0.3 ± 0.1"  # the standard error is √.02 / √2


def test_no_figure_without_its_part() -> None:
    assert draw_reading(no_features(), {}, n_rules=10) == {}
