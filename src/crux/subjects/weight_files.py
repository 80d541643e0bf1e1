"""Check the weight files of a model folder without torch, so that a truncated download is reported at once."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from crux.config.errors import UserError


def check_weights(folder: Path) -> None:
    """Raise UserError unless the folder holds complete safetensors files; read only their headers."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: not an index of safetensors files") from error
    else:
        names = ["model.safetensors"]
    for name in names:
        path = folder / name
        if not path.is_file():
            pickled = " (pickled weights are never read)" if any(folder.glob("*.bin")) else ""
            raise UserError(f"model folder {folder}: no {name} in it{pickled}")
        try:
            with safe_open(path, framework="np"):
                pass
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file, or a broken one ({error})") from error
