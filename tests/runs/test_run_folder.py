"""The run folder: its files are complete, a resumed run drops the history after its checkpoint, and unfinished runs are found."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from crux.config.errors import UserError
from crux.runs.new_run import create_new_run
from crux.runs.run_folder import (
    RunFolder,
    comparable_keys,
    find_same_run,
    find_unfinished,
    list_differences,
    open_unfinished,
)

CONFIG: dict[str, Any] = {
    "layer": 6, "loss": {"name": "e2e", "kl": 1.0}, "resume": False, "resume_from": None,
    "tracking": {"mlflow": True, "uri": None}, "output_dir": "/a", "cache": None,
}  # fmt: skip


def test_what_is_written_to_a_run_folder_is_read_again(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "one", CONFIG)
    assert folder.read_config() == CONFIG
    assert not folder.done
    assert folder.read_history() == []
    folder.add_row(1, {"train/loss": 2.0})
    folder.add_row(2, {"train/loss": 1.5, "val/kl": 0.25})
    assert folder.read_history() == [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.5, "val/kl": 0.25}]
    folder.write_metrics({"final/l0": 20.0})
    assert json.loads((folder.path / "metrics.json").read_text()) == {"final/l0": 20.0}
    folder.finish()
    assert folder.done
    assert not list(folder.path.glob(".*"))  # no temporary file stays


def test_rows_after_the_checkpoint_and_an_incomplete_line_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    for step in (1, 2, 3, 4):
        folder.add_row(step, {"train/loss": float(step)})
    with (folder.path / "history.jsonl").open("a") as f:
        f.write('{"step": 5, "train/lo')  # a kill in the middle of a write
    folder.drop_rows_after(3)
    assert [row["step"] for row in folder.read_history()] == [1, 2, 3]
    folder.add_row(4, {"train/loss": 9.0})
    assert folder.read_history()[-1] == {"step": 4, "train/loss": 9.0}
    folder.drop_rows_after(0)
    assert folder.read_history() == []


def test_only_a_folder_in_which_nothing_was_trained_is_removed(tmp_path: Path) -> None:
    fresh, trained = (RunFolder.create(tmp_path / name, CONFIG) for name in ("fresh", "trained"))
    for folder in (fresh, trained):
        folder.drop_rows_after(0)
    trained.add_row(1, {"train/loss": 1.0})
    fresh.remove_if_unstarted()
    trained.remove_if_unstarted()
    assert not fresh.path.exists()
    assert trained.path.exists()


def test_runs_that_start_at_once_have_different_names(tmp_path: Path) -> None:
    with ExitStack() as ends:
        paths = [ends.enter_context(create_new_run(tmp_path, "e2e_L6_s1", CONFIG)).path for _ in range(3)]
    assert all((path / "config.yaml").is_file() for path in paths)
    assert len(set(paths)) == 3
    assert all(p.parent == tmp_path / "runs" and "e2e_L6_s1" in p.name for p in paths)


def test_comparable_keys_are_flat_and_leave_out_places_and_tracking() -> None:
    assert comparable_keys(CONFIG) == {"layer": 6, "loss.name": "e2e", "loss.kl": 1.0}
    moved = CONFIG | {"resume": True, "tracking": {"mlflow": False, "uri": "x"}, "output_dir": "/b", "cache": "/c"}
    assert list_differences(CONFIG, moved) == []
    other = CONFIG | {"layer": 2, "loss": {"name": "e2e", "kl": 0.5}, "extra": 1}
    assert list_differences(CONFIG, other) == ["extra: None / 1", "layer: 6 / 2", "loss.kl: 1.0 / 0.5"]


def create_run(outputs: Path, name: str, config: dict[str, Any]) -> RunFolder:
    return RunFolder.create(outputs / "runs" / name, config)


def test_find_unfinished_returns_the_newest_run_with_the_same_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no unfinished run"):
        find_unfinished(tmp_path, CONFIG)
    create_run(tmp_path, "2026-01-01_00-00-00_a", CONFIG)
    newer = create_run(tmp_path, "2026-01-02_00-00-00_a", CONFIG)
    create_run(tmp_path, "2026-01-03_00-00-00_a", CONFIG | {"layer": 2})
    create_run(tmp_path, "2026-01-04_00-00-00_a", CONFIG).finish()
    (tmp_path / "runs" / "2026-01-05_no_run").mkdir()
    assert find_unfinished(tmp_path, CONFIG | {"resume": True}).path == newer.path


def test_of_runs_that_start_within_one_second_the_last_is_the_newest(tmp_path: Path) -> None:
    """Sorted by name, `-11` would precede `-2`."""
    numbers = ["", *(f"-{i}" for i in range(2, 12))]
    runs = [create_run(tmp_path, f"2026-01-01_00-00-00_a{number}", CONFIG) for number in numbers]
    assert find_unfinished(tmp_path, CONFIG).path == runs[-1].path


def test_a_folder_with_an_unreadable_configuration_does_not_hide_the_others(tmp_path: Path) -> None:
    good = create_run(tmp_path, "2026-01-01_00-00-00_a", CONFIG)
    for name, text in (("2026-01-02_00-00-00_a", "{layer: ["), ("2026-01-03_00-00-00_a", "")):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "config.yaml").write_text(text)
    assert find_unfinished(tmp_path, CONFIG).path == good.path


def test_open_unfinished_accepts_only_an_unfinished_run_with_the_same_configuration(tmp_path: Path) -> None:
    folder = create_run(tmp_path, "a", CONFIG)
    assert open_unfinished(folder.path, CONFIG).path == folder.path
    with pytest.raises(UserError, match=r"not a run folder \(it has no config.yaml\)"):
        open_unfinished(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"differs \(there / here\): layer: 6 / 2"):
        open_unfinished(folder.path, CONFIG | {"layer": 2})
    (folder.path / "config.yaml").write_text("{layer: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        open_unfinished(folder.path, CONFIG)
    (folder.path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    folder.finish()
    with pytest.raises(UserError, match="is finished"):
        open_unfinished(folder.path, CONFIG)


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"loss": 1}', '{"step": 1.5}', '{"step": 2, "loss": "x"}', "\x00", "[" * 9999]
)
def test_a_broken_line_of_the_history_is_named(line: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.add_row(1, {"train/loss": 1.0})
    with (folder.path / "history.jsonl").open("a") as f:
        f.write(f"{line}\n")
    folder.add_row(3, {"train/loss": 1.0})
    with pytest.raises(UserError, match=r"history\.jsonl line 2 is damaged"):
        folder.drop_rows_after(3)


@pytest.mark.parametrize(
    "text",
    ["a: &x [1]\nb: *x\n", "&a a: *a\n", "- 1\n", "1: 2\n", "a: " + "[" * 3000, "a: !!python/object/apply:os.system [ls]\n",
     "a: 2026-13-45\n", "a: \x00\n"],
)  # fmt: skip
def test_a_configuration_that_crux_did_not_write_is_refused(text: str, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    (folder.path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml cannot be read") as caught:
        folder.read_config()
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        open_unfinished(tmp_path, CONFIG)


def test_a_finished_run_is_not_continued_and_its_sae_can_be_trained_further(tmp_path: Path) -> None:
    outputs, config = tmp_path, {"seed": 0}
    run = RunFolder.create(outputs / "runs" / "2026-01-01_00-00-00_a", config)
    run.finish()
    with pytest.raises(UserError, match=r"that run is finished$"):
        open_unfinished(run.path, config)  # it has no SAE
    (run.path / "sae").mkdir()
    (run.path / "sae" / "cfg.json").write_text("{}")
    advice = f"; a new run with sae.start_from={run.path / 'sae'} trains its SAE further"
    with pytest.raises(UserError) as error:
        open_unfinished(run.path, config)
    assert str(error.value) == f"resume_from={run.path}: that run is finished{advice}"
    with pytest.raises(UserError) as error:
        find_same_run(run.path, {"seed": 1})
    assert str(error.value).endswith(f"or remove that folder{advice}")


def test_a_continued_run_has_the_configuration_with_which_it_is_continued(tmp_path: Path) -> None:
    """Keys that are not compared may differ, or be damaged; the file is then that of an uninterrupted run."""
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    whole = (folder.path / "config.yaml").read_bytes()
    (folder.path / "config.yaml").write_text(whole.decode().replace("output_dir: /a", "output_dir: /b"))
    folder.renew_config({**CONFIG, "resume": True})
    assert (folder.path / "config.yaml").read_bytes() == whole
