"""Finds a trained modular-addition network in a folder. Standard library only: mistakes are reported before torch loads."""

import json
from pathlib import Path

MODEL_TYPE = "modular_addition"
"""In its config.json."""

RUN_SUBFOLDER = Path("programs") / MODEL_TYPE
"""Where it lies in the run folder of the experiment that trained it."""


def find_addition_folder(path: Path) -> Path | None:
    """The folder of the network that `path` is, or that the run folder `path` holds; None where it is no such thing."""
    for folder in (path, path / RUN_SUBFOLDER):
        try:
            about = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if (
            isinstance(about, dict)
            and about.get("model_type") == MODEL_TYPE
            and (folder / "model.safetensors").is_file()
        ):
            return folder
    return None
