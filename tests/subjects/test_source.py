"""Finding the folder of a subject."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from crux.config.errors import UserError
from crux.subjects import source
from crux.subjects.source import find_folder


def test_existing_folder_is_returned(tmp_path: Path) -> None:
    assert find_folder(tmp_path) == tmp_path
    assert find_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"])
def test_a_missing_folder(name: str) -> None:
    with pytest.raises(UserError, match=r": no such folder$"):
        find_folder(name)


def test_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="model folder model: not a folder"):
        find_folder("model")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local cache of the hub has no model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("empty_cache")
def test_unreachable_hub_suggests_alternatives() -> None:
    with pytest.raises(
        UserError, match=r"^model gpt2: .* \(HF_HUB_OFFLINE is set\); use model=tiny .* or model\.path="
    ):
        find_folder("gpt2")


@pytest.mark.usefixtures("empty_cache")
def test_invalid_hub_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "explain_unreachable_hub", lambda seconds: "no answer")
    with pytest.raises(UserError, match="not a valid name on the hub"):
        find_folder("gpt 2")


def test_a_cached_model_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--gpt2" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--gpt2" / "refs").mkdir()
    (tmp_path / "models--gpt2" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(source, "explain_unreachable_hub", lambda seconds: "no answer")
    (snapshot / "config.json").touch()
    with pytest.raises(UserError, match="not in the local cache"):
        find_folder("gpt2")  # an incomplete download does not count
    (snapshot / "model.safetensors").touch()
    assert find_folder("gpt2") == snapshot
