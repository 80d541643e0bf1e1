"""Atomic writes of files and folders."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from crux.config.files import replacing, replacing_folder, write_tensors, write_text


def test_text_is_utf8_and_replaces_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")
    write_text(path, "λ")
    assert path.read_text("utf-8") == "λ"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_of_any_memory_layout_are_written(tmp_path: Path) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    write_tensors(tmp_path / "a.safetensors", {"x": matrix.mT}, metadata={"format": "pt"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("x"), matrix.mT)
        assert file.metadata() == {"format": "pt"}
    write_tensors(tmp_path / "a.safetensors", {})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() is None


def test_a_file_whose_writer_fails_stays_as_it_was(tmp_path: Path) -> None:
    """The writer fails in the middle of writing, or before the temporary file exists."""
    path = tmp_path / "report.md"
    write_text(path, "old")

    def write_and_be_killed() -> None:
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_be_killed()
    with pytest.raises(OSError, match="disk full"), replacing(path):
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_renamed_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")

    def fails(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "below" / "sae"
    for name in ("old", "new"):
        with replacing_folder(path) as folder:
            (folder / name).touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_whose_writer_fails_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer fails in the middle of writing, or when the new folder cannot replace the old one."""
    path = tmp_path / "sae"
    with replacing_folder(path) as folder:
        (folder / "old").touch()

    def fill_the_disk() -> None:
        with replacing_folder(path) as folder:
            (folder / "new").touch()
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fill_the_disk()
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith("new"):
            raise OSError("no rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no rename"), replacing_folder(path) as folder:
        (folder / "new").touch()
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
