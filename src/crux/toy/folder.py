"""Find a trained toy model in a folder. Only the standard library is needed, so that errors are reported before torch is imported."""

import json
from pathlib import Path

from crux.config.errors import UserError

HOOK = "hook_hidden"
"""The only hook point of a toy model: the activations between its two maps."""


def toy_folder(path: Path) -> Path | None:
    """Return the folder of the toy model at `path`, or of the one in the run folder `path`; None if there is no toy model.

    Raises:
        UserError: if the run has several models.
    """
    if _is_toy_model(path):
        return path
    models = sorted(p for p in (path / "programs").glob("*") if _is_toy_model(p))
    if len(models) > 1:
        names = ", ".join(f"programs/{p.name}" for p in models[:6])
        raise UserError(f"model.path={path}: the run has {len(models)} models, choose one of {names}")
    return models[0] if models else None


def find_toy_model(path: str | None) -> Path:
    """Return the folder of the toy model that `model.path` names.

    Raises:
        UserError: if there is no such folder, or if it has no toy model or several.
    """
    if path is not None and not Path(path).exists():
        raise UserError(f"model.path={path}: no such folder")
    folder = toy_folder(Path(path)) if path is not None else None
    if folder is None:
        raise UserError(f"model.path={path}: must be the run folder of a toy experiment")
    return folder


def read_n_instances(folder: Path) -> tuple[int, int]:
    """Return the numbers of streams and of settings of the model in a toy model's folder."""
    streams, settings = _read_config(folder)["instances"]
    return streams, settings


def read_n_hidden(folder: Path) -> int:
    """Return the width of the hidden layer of the model in a toy model's folder."""
    return _read_config(folder)["n_hidden"]


def _read_config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text("utf-8"))


def _is_toy_model(folder: Path) -> bool:
    try:
        config = _read_config(folder)
    except (OSError, ValueError):
        return False
    return (
        isinstance(config, dict)
        and config.get("model_type") == "superposition"
        and (folder / "model.safetensors").is_file()
    )
