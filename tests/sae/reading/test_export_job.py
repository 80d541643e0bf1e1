"""experiment=export on the command line: Neuronpedia's files have the numbers of the reading and of the SAE, and mistakes are one line."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import crux

TEXT = ("tracking=none", "trainer.progress=false", "model.context=64", "batch=8")
FEW = (
    "reading.fit_tokens=8192", "reading.held_out_tokens=4096", "reading.n_rules=5", "report_sizes=[1]", "reading.controls=0",
    "reading.influence_windows=0", "reading.rewriting_tokens=0", "reading.residual_tokens=0", "reading.steered=0",
)  # fmt: skip
N = 48


@pytest.fixture(scope="module")
def trained(short_job: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a small TopK SAE."""
    words = ["loss=local", "sae=topk", f"sae.n_latents={N}", "sae.k=8", "evaluation.latents=0", "tracking=none"]
    return crux.train([*short_job, *words, f"output_dir={tmp_path_factory.mktemp('trained')}"]).folder


@pytest.fixture(scope="module")
def read(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a reading of this SAE."""
    words = ["experiment=read", f"sae.path={trained}", *TEXT, *FEW]
    return crux.train([*words, f"output_dir={tmp_path_factory.mktemp('read')}"]).folder


@pytest.fixture(scope="module")
def exported(trained: Path, read: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of an export of this SAE with the reading."""
    words = ["experiment=export", f"sae.path={trained}", f"read={read}", "neuronpedia.set_name=res-mine", *TEXT]
    return crux.train([*words, f"output_dir={tmp_path_factory.mktemp('export')}"]).folder


def read_lines(folder: Path, table: str) -> list[dict[str, Any]]:
    content = gzip.decompress((folder / table / "batch-0.jsonl.gz").read_bytes())
    return [json.loads(line) for line in content.decode().splitlines()]


def test_numbers_are_those_of_the_reading(exported: Path, read: Path, trained: Path) -> None:
    folder = exported / "neuronpedia" / "tiny" / "6-res-mine"
    table, rows = pd.read_parquet(read / "features.parquet"), read_lines(folder, "features")
    assert [row["index"] for row in rows] == [str(i) for i in range(N)]
    np.testing.assert_allclose([row["frac_nonzero"] for row in rows], table["density"], rtol=1e-5)
    np.testing.assert_allclose([row["maxActApprox"] for row in rows], table["max_code"].fillna(0), rtol=1e-5)
    sae, _ = crux.load_sae(trained / "sae")
    np.testing.assert_allclose([row["vector"] for row in rows], sae.dictionary().detach().numpy(), atol=1e-5)
    cosines = sae.dictionary().detach().numpy() @ sae.dictionary().detach().numpy().T
    np.fill_diagonal(cosines, -1)
    np.testing.assert_allclose([row["topkCosSimValues"][0] for row in rows], cosines.max(1), atol=1e-5)
    assert {row["hookName"] for row in rows} == {"blocks.6.hook_resid_pre"}


def test_explanations_are_the_first_rules_of_explained_latents(exported: Path, read: Path) -> None:
    table = pd.read_parquet(read / "features.parquet")
    explained = {
        row["index"]: row["description"] for row in read_lines(exported / "neuronpedia/tiny/6-res-mine", "explanations")
    }
    known = [i for i in range(N) if not table.loc[i, "unexplained"] and len(table.loc[i, "rules"])]
    assert 0 < len(known) <= N
    assert sorted(map(int, explained)) == known
    for i in known:
        shown = explained[str(i)].split("; ")
        assert len(shown) <= 3
        assert [rule.startswith(f"{text} → ") for rule, text in zip(table.loc[i, "rules"], shown, strict=False)] == [
            True
        ] * len(shown)
    assert json.loads((exported / "metrics.json").read_text())["final/explained"] == len(known)


def test_explanations_of_an_llm_take_precedence_and_name_the_model(
    run_crux: Callable[..., int], trained: Path, read: Path, tmp_path: Path
) -> None:
    written = tmp_path / "written"
    shutil.copytree(read, written)
    table = pd.read_parquet(written / "features.parquet")
    table["llm_explanation"] = [None, "full stops", *[None] * (N - 2)]
    table.to_parquet(written / "features.parquet")
    config = yaml.safe_load((written / "config.yaml").read_text("utf-8"))
    config["llm"] = {"model": "some-model"}
    (written / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    words = ("experiment=export", f"sae.path={trained}", f"read={written}", *TEXT, f"output_dir={tmp_path}")
    assert run_crux(*words) == 0
    (run,) = (tmp_path / "runs").iterdir()
    rows = {row["index"]: row for row in read_lines(run / "neuronpedia/tiny/6-crux", "explanations")}
    assert (rows["1"]["description"], rows["1"]["explanationModelName"]) == ("full stops", "some-model")
    assert {row["explanationModelName"] for index, row in rows.items() if index != "1"} == {"crux rules"}


def test_an_sae_without_a_reading_is_exported_too(
    run_crux: Callable[..., int], trained: Path, read: Path, tmp_path: Path
) -> None:
    """On the same number of held-out tokens, densities are those of the reading; there are no explanations and no vectors."""
    words = (
        "experiment=export",
        "format=neuronpedia",
        f"sae.path={trained / 'sae'}",
        "tokens=4096",
        "neuronpedia.vectors=false",
    )
    assert run_crux(*words, *TEXT, f"output_dir={tmp_path}") == 0
    (run,) = (tmp_path / "runs").iterdir()
    folder = run / "neuronpedia" / "tiny" / "6-crux"
    rows = read_lines(folder, "features")
    density = pd.read_parquet(read / "features.parquet")["density"]
    np.testing.assert_allclose([row["frac_nonzero"] for row in rows], density, rtol=1e-5)
    assert not any(row["hasVector"] for row in rows)
    assert not (folder / "explanations").exists()
    assert "6-crux" in (run / "report.md").read_text()


def test_mistakes_are_one_line(
    trained: Path, read: Path, tmp_path_factory: pytest.TempPathFactory, error_message: Callable[..., str]
) -> None:
    unfinished = tmp_path_factory.mktemp("runs") / "unfinished"
    shutil.copytree(read, unfinished)
    (unfinished / "DONE").unlink()
    cases: list[tuple[list[str], str]] = [
        (["sae.path=nowhere"], "sae.path=nowhere: no such folder"),
        ([f"sae.path={trained}", "format=pickle"], "neuronpedia"),
        ([f"sae.path={trained}", "read=nowhere"], "read=nowhere: no such folder"),
        ([f"sae.path={trained}", f"read={trained}"], "not a run folder of experiment=read"),
        ([f"sae.path={trained}", f"read={unfinished}"], "the reading is not finished; resume=true continues it"),
        ([f"sae.path={trained}", f"read={read}", "tokens=4096"], "tokens and read both given"),
        ([f"sae.path={trained}", "neuronpedia.set_name=a/b"], "neuronpedia.set_name=a/b: cannot be the name of a folder"),
        ([f"sae.path={trained}", "hook_point=blocks.2.hook_resid_pre"], "reads blocks.6.hook_resid_pre, not blocks.2"),
    ]  # fmt: skip
    for words, message in cases:
        assert message in error_message("experiment=export", *TEXT, *words)


def test_a_reading_of_another_sae_is_refused(
    run_crux: Callable[..., int], trained: Path, read: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(read, other)
    table = pd.read_parquet(other / "features.parquet")
    table.loc[0, "firings_held_out"] += 1
    table.to_parquet(other / "features.parquet")
    words = ("experiment=export", f"sae.path={trained}", f"read={other}", *TEXT, f"output_dir={tmp_path}")
    assert run_crux(*words) == 2
    assert "reads another SAE than sae.path, or another text or model" in capsys.readouterr().err
