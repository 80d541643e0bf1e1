"""Find a trained modular-addition network in a folder.

This module does not import torch, so that errors are reported before torch is imported.
"""

from pathlib import Path

from crux.config.errors import UserError
from crux.config.json_files import read_json_object

MODEL_TYPE = "modular_addition"
"""The value of `model_type` in the network's config.json."""

RUN_SUBFOLDER = Path("programs") / MODEL_TYPE
"""The network's subfolder in the run folder of the experiment that trained it."""


def find_addition_folder(path: Path) -> Path | None:
    """Return the folder of a network, given that folder or the run folder that contains it; None if there is no network."""
    for folder in (path, path / RUN_SUBFOLDER):
        try:
            config = read_json_object(folder / "config.json")
        except UserError:  # what should be a language model is read, and its file named, elsewhere
            continue
        if config.get("model_type") == MODEL_TYPE and (folder / "model.safetensors").is_file():
            return folder
    return None
