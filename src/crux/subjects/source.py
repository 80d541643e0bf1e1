"""Where a subject comes from: the packaged model, a folder, or the Hugging Face hub. Imports no torch."""

import os
import socket
import threading
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from crux.config.errors import UserError

_PROBE_SECONDS = 1.5
_INSTEAD = "use model=tiny (packaged) or model.path=<folder of a Hugging Face model>"
_FILES = ["*.json", "*.safetensors"]


def find_folder(source: str | Path) -> Path:
    """The local folder of a model: "tiny" (packaged), a folder's path, or a hub name such as "gpt2".

    A hub name is taken from the local cache, else downloaded (safetensors and JSON files only). Raises UserError (one
    line) for a missing folder, a name that the hub does not have, and where the hub cannot be reached.
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
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = constants.HF_HUB_OFFLINE
    try:
        try:
            cached = Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns="*/*", local_files_only=True))
            if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
                return cached
        except LocalEntryNotFoundError:
            pass  # not in the cache
        if offline or not _reachable(constants.ENDPOINT):
            why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
            raise UserError(f"model {name}: no such folder, not in the local cache, and {why}; {_INSTEAD}")
        return Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns="*/*"))
    except HFValidationError as error:
        raise UserError(f"model {name}: no such folder, and not a name of the hub; {_INSTEAD}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"model {name}: the hub does not give it ({first}); {_INSTEAD}") from error


def _reachable(endpoint: str) -> bool:
    """Whether the hub, or the proxy before it, takes a connection soon enough, name look-up included."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or endpoint)
    port = address.port or (443 if address.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((address.hostname or "", port), timeout=_PROBE_SECONDS).close()
        except OSError:
            return
        answered.set()

    probe = threading.Thread(target=connect, daemon=True)  # a resolver can hang for longer than any socket timeout
    probe.start()
    probe.join(_PROBE_SECONDS)
    return answered.is_set()
