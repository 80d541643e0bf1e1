"""Find a subject's files: the packaged model, a folder, or the Hugging Face hub. This module does not import torch."""

from importlib.resources import files
from pathlib import Path

from crux.config.errors import UserError
from crux.config.hub import explain_unreachable_hub

_PROBE_SECONDS = 1.5
"""Longest wait for the check whether the hub can be reached."""
_ALTERNATIVES = "use model=tiny (packaged) or model.path=<folder of a Hugging Face model>"
_FILE_PATTERNS = ["*.json", "*.safetensors", "merges.txt"]
"""Files of a hub model that are downloaded: no pickled weights, no code. Older tokenizers consist of vocab.json and merges.txt."""


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
    name = str(source)
    try:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return folder
        exists = folder.exists() or folder.is_symlink()
    except (OSError, RuntimeError) as error:  # a name that is too long, or the home folder of an unknown user
        raise UserError(f"model folder {name[:200]}: not the path of a folder ({_reason(error)})") from error
    if isinstance(source, Path) or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {source}: no such folder")
    if exists:
        raise UserError(f"model folder {source}: not a folder")
    return _find_on_hub(name)


def _find_on_hub(name: str) -> Path:
    """Return the cached folder of a hub model, which is downloaded if necessary."""
    # huggingface_hub's downloads take 0.3 CPU seconds to import; most mistakes are found before they are needed
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"model {name}: no such folder, and not a valid name on the hub; {_ALTERNATIVES}") from error
    has_cache = (Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").is_dir()
    if has_cache and (cached := _find_in_cache(name)):
        return cached
    if why := explain_unreachable_hub(seconds=_PROBE_SECONDS):
        raise UserError(
            f"model {name}: no such folder, not in the local cache, and the hub cannot be reached ({why}); {_ALTERNATIVES}"
        )
    return _download(name)


def _find_in_cache(name: str) -> Path | None:
    """Return the cached folder of a hub model; None unless it holds a configuration and weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(name, allow_patterns=_FILE_PATTERNS, ignore_patterns="*/*", local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")) else None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILE_PATTERNS, ignore_patterns="*/*"))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model {name}: cannot be downloaded from the hub ({reason}); {_ALTERNATIVES}") from error


def _reason(error: Exception) -> str:
    """Return the reason of an error without the path, which may be very long."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
