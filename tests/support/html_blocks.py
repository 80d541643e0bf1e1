"""Reads the data in the HTML of a page of latents, in Python."""

import json
import re
from typing import Any

import numpy as np

from crux.sae.figures.packed_arrays import decompress, unpack_arrays


class HtmlBlocks:
    """The blocks of a page, and what they hold."""

    def __init__(self, html: str) -> None:
        self.texts = dict(re.findall(r'<script type="text/plain" id="([^"]+)">([^<]*)</script>', html))
        self.manifest: dict[str, Any] = json.loads(decompress(self.texts["manifest"]))

    def index(self, name: str) -> dict[str, np.ndarray]:
        """Return the index of SAE `a` or `b`."""
        return unpack_arrays(decompress(self.texts[f"{name}-index"]), self._types(name, "index_types"))

    def chunk(self, name: str, number: int) -> dict[str, np.ndarray]:
        """Return a chunk of SAE `a` or `b`."""
        return unpack_arrays(decompress(self.texts[f"{name}-{number}"]), self._types(name, "chunk_types"))

    def store(self, number: int) -> np.ndarray:
        """Return the pieces of a text."""
        types = [(key, kind) for key, kind in self.manifest["stores"][number]["types"]]
        return unpack_arrays(decompress(self.texts[f"store-{number}"]), types)["pieces"]

    def _types(self, name: str, key: str) -> list[tuple[str, str]]:
        return [(array, kind) for array, kind in self.manifest["saes"]["ab".index(name)][key]]
