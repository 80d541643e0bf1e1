"""experiment=read/compare on the command line: tables of several SAEs, an SAE against its copy, a resumed comparison, and mistakes."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from crux.sae import compare_job
from crux.sae.compare_job import name_saes
from crux.sae.reading import use_section

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


def read_table(folder: Path, heading: str) -> list[dict[str, str]]:
    """Return the rows of the report's table under a heading."""
    text = (folder / "report.md").read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    )
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_copy_differs_in_nothing(compared: Path, trained: Path, copy: Path) -> None:
    first, second = name_saes([str(trained), str(copy)])
    metrics = json.loads((compared / "metrics.json").read_text())
    for n in (20, 100):
        ours, theirs = (metrics[f"final/{name}/recovered@{n}"] for name in (first, second))
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert metrics[f"final/{first}_{second}/matched_cos"] == pytest.approx(1, abs=1e-5)
    assert metrics[f"final/{first}_{second}/matched_code_correlation"] == pytest.approx(1, abs=1e-5)
    rules = [row for row in read_table(compared, "Equally many rules") if row["codes"] == "100 rules"]
    assert [row["SAE"] for row in rules] == [first, second]
    assert [row["rules"] for row in rules] == ["100", "100"]
    assert float(rules[1]["CE − first"]) == pytest.approx(0, abs=1e-6)
    differences = read_table(compared, "Differences in steering")
    assert {row["control"] for row in differences} == {"", "isotropic"}
    np.testing.assert_allclose([float(row["difference"]) for row in differences], 0, atol=1e-6)
    assert (compared / "figures" / "equal_rules.png").exists()


def test_more_rules_recover_more(compared: Path, trained: Path, copy: Path) -> None:
    metrics = json.loads((compared / "metrics.json").read_text())
    name, _ = name_saes([str(trained), str(copy)])
    few, many = (metrics[f"final/{name}/recovered@{n}"] for n in (20, 100))
    assert 0 < few < many < 1
    assert metrics[f"final/{name}/recovered_of_clean@100"] < many  # the SAE itself loses something


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
