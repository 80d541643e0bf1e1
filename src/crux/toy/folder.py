"""Finds a trained toy model in a folder. Standard library only: mistakes are reported before torch loads."""

import json
from pathlib import Path

from crux.config.errors import UserError

HOOK = "hook_hidden"
"""A toy model's one hook point: the activations between its two maps."""


def toy_folder(path: Path) -> Path | None:
    """Return the folder of the toy model that `path` is, or that a toy experiment's run folder holds; None if it is neither.

    Raises:
        UserError: if the run holds several.
    """
    if _is_toy(path):
        return path
    found = sorted(p for p in (path / "programs").glob("*") if _is_toy(p))
    if len(found) > 1:
        names = ", ".join(f"programs/{p.name}" for p in found[:6])
        raise UserError(f"model.path={path}: the run has {len(found)} models, name one of {names}")
    return found[0] if found else None


def find_toy_model(path: str | None) -> Path:
    """Return the folder of the toy model that `model.path` names.

    Raises:
        UserError: if it names none, or a run with several.
    """
    folder = toy_folder(Path(path)) if path is not None else None
    if folder is None:
        raise UserError(f"model.path={path}: must be the run folder of a toy experiment")
    return folder


def n_instances(folder: Path) -> tuple[int, int]:
    """Return the numbers of streams and settings of the model in a toy model's folder."""
    streams, settings = _about(folder)["instances"]
    return streams, settings


def n_hidden(folder: Path) -> int:
    """Return the width of the hidden layer of the model in a toy model's folder."""
    return _about(folder)["n_hidden"]


def _about(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text("utf-8"))


def _is_toy(folder: Path) -> bool:
    try:
        about = _about(folder)
    except (OSError, ValueError):
        return False
    return (
        isinstance(about, dict)
        and about.get("model_type") == "superposition"
        and (folder / "model.safetensors").is_file()
    )
