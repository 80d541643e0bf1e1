"""A data set of the Hugging Face hub, streamed row by row."""

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Integer

from crux.config.errors import UserError
from crux.text.readers import COLUMNS

PATIENCE = 3.0  # seconds for the probe


def reachable(*, seconds: float) -> str | None:
    """None where the hub, or the proxy before it, takes a connection; else why not. Name resolution counts as well."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = urllib.request.getproxies().get(hub.scheme)
    if proxy and hub.hostname and not urllib.request.proxy_bypass(hub.hostname):
        hub = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = hub.hostname or "", hub.port or (443 if hub.scheme == "https" else 80)
    result = ["no answer"]

    def probe() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            result[0] = ""
        except OSError as e:
            result[0] = e.strerror or str(e)

    thread = threading.Thread(target=probe, daemon=True)  # getaddrinfo has no timeout of its own
    thread.start()
    thread.join(seconds)
    return f"{address[0]}:{address[1]}: {result[0]}" if result[0] else None


def hub_documents(
    name: str, *, config: str | None, split: str, revision: str | None, column: str | None
) -> Iterator[str | Integer[np.ndarray, "pos"]]:
    """The rows of one split: texts, or token ids where the column holds lists; null ones are passed over.

    Raises:
        UserError: no network, no such data set, config, split or column.
    """
    if why := reachable(seconds=PATIENCE):
        raise UserError(
            f"data set {name}: no Hugging Face hub within reach ({why}); use data=packaged, or download its Parquet "
            "files elsewhere and give their folder as data.path"
        )
    from datasets import load_dataset  # seconds to import

    try:
        rows = load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (OSError, RuntimeError, ValueError) as e:  # not there, gated, a script, no such config or split
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None
    try:
        for number, row in enumerate(rows):
            wanted = column or next((c for c in COLUMNS if c in row), COLUMNS[0])
            match row.get(wanted):
                case str(text):
                    yield text
                case list() | np.ndarray() as ids:
                    yield _ids(ids, where=f"data set {name}, row {number}, {wanted!r}")
                case None if wanted in row:
                    continue
                case _:
                    raise UserError(
                        f"data set {name}: no column {wanted!r} of texts or token ids; there are: {', '.join(row)} "
                        "(data.column chooses one)"
                    )
    except (OSError, RuntimeError) as e:  # the connection broke
        raise UserError(f"data set {name}: {' '.join(str(e).split())}") from None


def _ids(values: object, *, where: str) -> Integer[np.ndarray, "pos"]:
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise UserError(f"{where}: neither a text nor a list of token ids")
    return ids.astype(np.int64)
