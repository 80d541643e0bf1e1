"""Names of a sweep's folders: readable, whatever was overridden, and short enough for any file system."""

import hashlib

LONGEST = 180
"""Bytes; file systems take 255 for a name, and temporary files put something in front."""


def shortened(name: str) -> str:
    """The name, without slashes; a long one is cut, and ends in its hash."""
    name = name.replace("/", "-")
    if len(name.encode()) <= LONGEST:
        return name
    return name.encode()[: LONGEST - 13].decode(errors="ignore") + "-" + hashlib.sha256(name.encode()).hexdigest()[:12]
