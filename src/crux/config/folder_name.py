"""Names of the folders of a sweep: readable, and short enough for any file system."""

import hashlib

MAX_NAME_BYTES = 180
"""Bytes of a name. File systems allow 255, and the names of temporary files are longer."""


def shorten_name(name: str) -> str:
    """Return the name without slashes; a long name is cut and ends in its hash."""
    name = name.replace("/", "-")
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    return (
        name.encode()[: MAX_NAME_BYTES - 13].decode(errors="ignore")
        + "-"
        + hashlib.sha256(name.encode()).hexdigest()[:12]
    )
