"""Find a trained modular-addition network in a folder.

This module uses only the standard library, so that errors are reported before torch is imported.
"""

import json
from pathlib import Path

MODEL_TYPE = "modular_addition"
"""The value of `model_type` in the network's config.json."""

RUN_SUBFOLDER = Path("programs") / MODEL_TYPE
"""The network's subfolder in the run folder of the experiment that trained it."""


def find_addition_folder(path: Path) -> Path | None:
    """Return the folder of a network, given that folder or the run folder that contains it; None if there is no network."""
    for folder in (path, path / RUN_SUBFOLDER):
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if (
            isinstance(config, dict)
            and config.get("model_type") == MODEL_TYPE
            and (folder / "model.safetensors").is_file()
        ):
            return folder
    return None
