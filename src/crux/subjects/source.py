"""Find a subject's files: the packaged model, a folder, or the Hugging Face hub. This module does not import torch."""

from importlib.resources import files
from pathlib import Path

from crux.config.errors import UserError
from crux.config.hub import explain_unreachable_hub

_PROBE_SECONDS = 1.5
_INSTEAD = "use model=tiny (packaged) or model.path=<folder of a Hugging Face model>"
_FILES = ["*.json", "*.safetensors"]


def find_folder(source: str | Path) -> Path:
    """Return the local folder of a model given as "tiny" (packaged), a folder's path, or a hub name such as "gpt2".

    A hub model is taken from the local cache or else downloaded (safetensors and JSON files only). Raises UserError (one
    line) if the folder is missing, the hub has no model of that name, or the hub cannot be reached.
    """
    if source == "tiny":
        folder = Path(str(files("crux.assets"))) / "tiny"
        if not folder.is_dir():
            raise UserError(f"model=tiny: the packaged model is missing at {folder}")
        return folder
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if isinstance(source, Path) or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {source}: no such folder")
    if folder.exists():
        raise UserError(f"model folder {source}: not a folder")
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        try:
            cached = Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns="*/*", local_files_only=True))
            if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
                return cached
        except LocalEntryNotFoundError:
            pass  # not in the cache
        if why := explain_unreachable_hub(seconds=_PROBE_SECONDS):
            raise UserError(
                f"model {name}: no such folder, not in the local cache, and the hub cannot be reached ({why}); {_INSTEAD}"
            )
        return Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns="*/*"))
    except HFValidationError as error:
        raise UserError(f"model {name}: no such folder, and not a valid name on the hub; {_INSTEAD}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model {name}: cannot be downloaded from the hub ({first}); {_INSTEAD}") from error
