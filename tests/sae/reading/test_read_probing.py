"""experiment=read probes its latents and writes SAEBench's file; the tables and numbers of both parts."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from crux.sae.formats.saebench import read_saebench_core
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.probing_section import probing_cells, probing_metrics, spread_rows, take_rows
from crux.sae.reading.sparse_codes import SparseCodes
from tests.support.small_readings import ONLY_RULES


def test_a_reading_has_both_parts(run_crux: Callable[..., int], trained: Path, tmp_path: Path) -> None:
    words = (*ONLY_RULES, "reading.probing=700", "reading.saebench_tokens=2048")
    assert run_crux(*words, f"sae.path={trained}", f"output_dir={tmp_path}") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    report = (folder / "report.md").read_text()
    for task in ("next_capital", "next_continues", "source_kjv"):
        assert re.search(
            rf"\| {task} \| 0\.\d+ \| [2-5] \| ([01]\.\d\d ± 0\.\d\d \| ){{7}}[01]\.\d\d ± 0\.\d\d \|", report
        ), task
        assert 0.4 < metrics[f"final/probing/latents@1/{task}"] <= 1
    for name in ("latents@1", "latents@5", "random_topk@1", "coordinates@1", "pca@1", "token", "dense"):
        assert 0.4 < metrics[f"final/probing/{name}"] <= 1
    difference = metrics["final/probing/latents@1"] - metrics["final/probing/random_topk@1"]
    assert metrics["final/probing/latents_minus_random@1"] == pytest.approx(difference)
    assert metrics["final/probing/latents_minus_random@1_se"] > 0
    assert metrics["final/probing/dense"] > metrics["final/probing/latents@1"]

    found = read_saebench_core(folder / "saebench_core.json")
    assert found.metrics["sparsity"]["l0"] == 8
    assert found.metrics["token_stats"]["total_tokens_eval_reconstruction"] == 2048
    assert (found.config["model_name"], found.config["context_size"]) == ("tiny", 64)
    assert found.config["n_eval_reconstruction_batches"] == 2
    assert found.sae_id == trained.name
    assert found.sae_config["d_sae"] == 64
    for category, values in found.metrics.items():
        for name, value in values.items():
            assert metrics[f"final/saebench/{category}/{name}"] == value
    features = pd.read_parquet(folder / "features.parquet")
    np.testing.assert_allclose(found.latents["feature_density"], features["saebench_feature_density"], atol=1e-9)
    assert set(found.notes) >= {"explained_variance_centred", "mse_per_dimension"}
    assert f"{found.notes['explained_variance_centred']:.4g}" in report


def test_rows_are_whole_windows_with_their_codes() -> None:
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((40, 6)) < 0.3, rng.random((40, 6)), 0).astype(np.float32)
    matrix = scipy.sparse.csr_matrix(dense)
    codes = SparseCodes(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, 6)
    read = ReadText(np.arange(40).reshape(10, 4), np.arange(40) % 4 == 0, codes, dense[:, :2])
    rows = spread_rows(read, max_tokens=14)
    np.testing.assert_array_equal(rows.reshape(-1, 4)[:, 0], [0, 12, 24])  # windows 0, 3 and 6 of 10
    taken = take_rows(read, rows)
    np.testing.assert_array_equal(taken.tokens, rows)
    np.testing.assert_array_equal(taken.codes.matrix().toarray(), dense[rows])
    np.testing.assert_array_equal(taken.x, dense[rows, :2])
    np.testing.assert_array_equal(taken.begins, rows % 4 == 0)
    assert len(spread_rows(read, max_tokens=1000)) == 40


def test_cells_and_means_of_probes() -> None:
    """Two properties; a third one has too few tokens and is in no mean."""
    rows = [
        ("a", "latents", 1, 0.9, 0.95), ("a", "random_topk", 1, 0.6, 0.7), ("a", "dense", 0, 1.0, 1.0),
        ("b", "latents", 1, 0.7, np.nan), ("b", "random_topk", 1, 0.6, np.nan), ("b", "dense", 0, 0.8, np.nan),
        ("c", "latents", 0, np.nan, np.nan),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["task", "features", "k", "auroc", "auroc_high"]).assign(share=0.25)
    metrics = probing_metrics(table)
    assert metrics["probing/latents@1"] == pytest.approx(0.8)
    assert metrics["probing/dense"] == pytest.approx(0.9)
    assert metrics["probing/latents_minus_random@1"] == pytest.approx(0.2)  # of 0.3 and 0.1
    assert metrics["probing/latents_minus_random@1_se"] == pytest.approx(0.1)
    assert (metrics["probing/latents@1/a"], metrics["probing/latents@1/b"]) == (0.9, 0.7)
    assert "probing/latents@0" not in metrics
    cells = probing_cells(table).set_index("property")
    assert (cells.loc["a", "1 latent"], cells.loc["b", "1 latent"]) == ("0.90 ± 0.05", "0.70")
    assert cells.loc["a", "whole activation"] == "1.00 ± 0.00"
    assert pd.isna(cells.loc["c", "1 latent"])
    assert probing_metrics(pd.DataFrame([{"task": "c", "features": "latents", "k": 0, "n_splits": 0}])) == {}
