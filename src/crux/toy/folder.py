"""Find a trained toy model in a folder. Only the standard library is needed, so that errors are reported before torch is imported."""

import json
from pathlib import Path

from crux.config.errors import UserError

HOOK = "hook_hidden"
"""The only hook point of a toy model: the activations between its two maps."""


def find_toy_model(path: str | None) -> Path:
    """Return the folder of the toy model that `model.path` names: that folder itself, or the single model of a run folder.

    Raises:
        UserError: if there is no such folder, or if it has no toy model or several.
    """
    if path is not None and not Path(path).exists():
        raise UserError(f"model.path={path}: no such folder")
    models = _list_toy_models(Path(path)) if path is not None else []
    if not models:
        given = "null" if path is None else path
        raise UserError(
            f"model.path={given}: must be the run folder of a toy experiment, or the folder of a model in its programs/"
        )
    if len(models) > 1:
        raise UserError(
            f"model.path={path}: the run has {len(models)} models; set model.path to one of them, such as {models[0]}"
        )
    return models[0]


def _list_toy_models(path: Path) -> list[Path]:
    """Return `path` if it is the folder of a toy model; otherwise the folders of the models in the run folder `path`."""
    if _is_toy_model(path):
        return [path]
    return sorted(folder for folder in (path / "programs").glob("*") if _is_toy_model(folder))


def read_instance_shape(folder: Path) -> tuple[int, int]:
    """Return how many streams and how many settings the model in a folder has; their product is its number of instances.

    Raises:
        UserError: if its config.json does not say.
    """
    match _read_config(folder).get("instances"):
        case [int(streams), int(settings)] if streams > 0 and settings > 0:
            return streams, settings
        case _:
            raise UserError(f"{folder / 'config.json'}: instances must be two numbers above 0")


def read_n_hidden(folder: Path) -> int:
    """Return the width of the hidden layer of the model in a toy model's folder.

    Raises:
        UserError: if its config.json does not say.
    """
    match _read_config(folder).get("n_hidden"):
        case int(width) if width > 0:
            return width
        case _:
            raise UserError(f"{folder / 'config.json'}: n_hidden must be a number above 0")


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except RecursionError:
        raise UserError(f"{folder / 'config.json'} cannot be read (it is nested too deeply)") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} cannot be read (it has no keys)")
    return config


def _is_toy_model(folder: Path) -> bool:
    try:
        config = _read_config(folder)
    except (OSError, ValueError):
        return False
    return config.get("model_type") == "superposition" and (folder / "model.safetensors").is_file()
