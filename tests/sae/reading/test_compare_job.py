"""experiment=read/compare on the command line: tables of several SAEs, an SAE against its copy, a resumed comparison, and mistakes."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from crux.sae import compare_job
from crux.sae.geometry.fisher_directions import Fisher
from crux.sae.read_inputs import name_saes
from crux.sae.reading import use_section
from crux.sae.reading.compare_saes import choose_rules
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.suffix_tree import grow_suffix_tree
from tests.support.small_readings import read_report_table
from tests.support.small_saes import make_random_sae

SMALL = (
    "experiment=read/compare", "tracking=none", "trainer.progress=false", "model.context=64", "batch=8",
    "comparing.fit_tokens=8192", "comparing.held_out_tokens=4096", "comparing.total_rules=[100,20]",
    "comparing.rewriting_tokens=512", "comparing.steered=2",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_contexts() -> Iterator[None]:
    """Steer in few contexts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(use_section, "STEERING_WINDOWS", 6)
        yield


@pytest.fixture(scope="module")
def copy(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a copy of the SAE."""
    return Path(shutil.copytree(trained / "sae", tmp_path_factory.mktemp("copy") / "copy"))


@pytest.fixture(scope="module")
def compared(run_crux: Callable[..., int], trained: Path, copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a comparison of an SAE with its copy."""
    place = tmp_path_factory.mktemp("compared")
    assert run_crux(*SMALL, f"saes=[{trained},{copy}]", f"output_dir={place}") == 0
    (folder,) = (place / "runs").iterdir()
    return folder


def test_a_copy_differs_in_nothing(compared: Path, trained: Path, copy: Path) -> None:
    first, second = name_saes([str(trained), str(copy)])
    metrics = json.loads((compared / "metrics.json").read_text())
    for n in (20, 100):
        ours, theirs = (metrics[f"final/{name}/recovered@{n}"] for name in (first, second))
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert metrics[f"final/{first}_{second}/matched_cos"] == pytest.approx(1, abs=1e-5)
    assert metrics[f"final/{first}_{second}/matched_code_correlation"] == pytest.approx(1, abs=1e-5)
    report = (compared / "report.md").read_text()
    rules = [row for row in read_report_table(report, "Equally many rules") if row["codes"] == "100 rules"]
    assert [row["SAE"] for row in rules] == [first, second]
    assert [row["rules"] for row in rules] == ["100", "100"]
    assert float(rules[1]["CE − first"]) == pytest.approx(0, abs=1e-6)
    differences = read_report_table(report, "Differences in steering")
    assert {row["control"] for row in differences} == {"", "isotropic"}
    np.testing.assert_allclose([float(row["difference"]) for row in differences], 0, atol=1e-6)
    assert (compared / "figures" / "equal_rules.png").exists()


def test_more_rules_recover_more(compared: Path, trained: Path, copy: Path) -> None:
    metrics = json.loads((compared / "metrics.json").read_text())
    name, _ = name_saes([str(trained), str(copy)])
    few, many = (metrics[f"final/{name}/recovered@{n}"] for n in (20, 100))
    assert 0 < few < many < 1
    assert metrics[f"final/{name}/recovered_of_clean@100"] < many  # the SAE itself loses something


def test_rules_go_to_the_latents_whose_errors_cost_the_network_most() -> None:
    """Codes are equal, and the Fisher information sees one direction, in which latent 2 is twice as long as latent 0 and 1 has no part."""
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 5, (60, 12))
    begins = np.zeros(windows.shape, bool)
    begins[:, 0] = True
    tree = grow_suffix_tree(windows, begins.reshape(-1), vocab=5)
    code = rng.gamma(2, 1, 720) * (windows.reshape(-1) == 3)
    matrix = scipy.sparse.csr_matrix(np.stack([code] * 3, 1).astype(np.float32))
    codes = SparseCodes(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data, 3)
    sae = make_random_sae(d_model=4, n_latents=3, seed=0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor([[1.0, 5, 0, 0], [0, 9, 0, 0], [2, 0, 0, 0]]))
    fisher = Fisher(torch.diag(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)), 1, 1)
    rules = choose_rules(sae, codes, totals=[1, 2, 6, 10_000], tree=tree, fisher=fisher)
    counts = {total: np.diff(some.indptr).tolist() for total, some in rules.items()}
    assert counts[1] == [0, 0, 1]
    assert counts[2][1] == 0
    assert sum(counts[6]) == 6
    assert counts[10_000][0] == counts[10_000][2] > 0 == counts[10_000][1]  # no rule for what the network does not read


def test_an_interrupted_comparison_is_continued(
    run_crux: Callable[..., int],
    trained: Path,
    copy: Path,
    compared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (*SMALL, f"saes=[{trained},{copy}]", f"output_dir={tmp_path}")

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare_job, "describe_pairs", stop)
        assert run_crux(*words) == 130
    for name in ("describe_equal_rules", "describe_equal_steering"):
        monkeypatch.setattr(compare_job, name, stop)
    assert run_crux(*words, "resume=true") == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.md").read_text() == (compared / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["saes=[{trained}]"], "saes=['{trained}']: must be a list of at least 2"),
        (["saes=[{trained},{trained}/sae]"], "saes[1]={trained}/sae is also saes[0]: name each SAE once"),
        (["saes=[{trained},nowhere]"], "saes[1]=nowhere: no such folder"),
        (["saes=[{trained},{copy}]", "model.process_weights=true"], "force=true uses it nevertheless"),
        (["saes=[{trained},{copy}]", "hook_point=blocks.2.hook_resid_pre"], "reads blocks.6.hook_resid_pre, not blocks.2"),
        (["saes=[{trained},{copy}]", "comparing.total_rules=[0]"], "comparing.total_rules"),
        ([], "saes"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    words: list[str], message: str, trained: Path, copy: Path, error_message: Callable[..., str]
) -> None:
    given = [word.format(trained=trained, copy=copy) for word in words]
    found = error_message("experiment=read/compare", "tracking=none", *given)
    assert message.format(trained=trained) in found


def test_saes_at_different_hook_points_are_not_compared(
    trained: Path, tmp_path: Path, error_message: Callable[..., str]
) -> None:
    other = Path(shutil.copytree(trained / "sae", tmp_path / "other"))
    config = json.loads((other / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.3.hook_resid_pre"
    (other / "cfg.json").write_text(json.dumps(config))
    found = error_message("experiment=read/compare", "tracking=none", f"saes=[{trained},{other}]")
    assert "different hook points (blocks.3.hook_resid_pre, blocks.6.hook_resid_pre)" in found


def test_names_are_the_parts_of_paths_that_differ() -> None:
    assert name_saes(["/a/x_0/run", "/a/x_1/run"]) == ["x_0", "x_1"]
    assert name_saes(["/a/b/c", "/a/b/d"]) == ["c", "d"]
    assert name_saes(["/a/b/run", "/a/c/d/run"]) == ["b", "c/d"]
    assert name_saes(["/a/b", "/a/b/sae"]) == ["b", "sae"]
    assert name_saes(["/a/b", "/a/b"]) == ["b", "b (2)"]
    times = ["/runs/2026-11-28_00-35-04_topk", "/runs/2026-11-28_00-36-04_relu"]
    assert name_saes(times) == ["topk", "relu"]
    assert name_saes([times[0], times[0].replace("35", "36")])[0] == "2026-11-28_00-35-04_topk"
