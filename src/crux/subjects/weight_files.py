"""Check the weight files of a model folder without torch, so that a truncated download is reported at once."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import NamedTuple

from crux.config.errors import UserError
from crux.config.json_files import read_json_object
from crux.config.tensor_files import TensorHeader, read_tensor_header

_IGNORED_BUFFERS = re.compile(r"\.(masked_bias|inv_freq)$|\.(attn|attention)\.bias$")
"""Names of causal masks and rotary frequencies, which old checkpoints contain besides the weights."""


class StoredWeight(NamedTuple):
    """A weight as it is stored in a model folder."""

    path: Path
    """The file that holds it."""
    header: TensorHeader
    """Its shape and type."""


def check_weights(folder: Path) -> dict[str, StoredWeight]:
    """Return what the headers of the folder's weight files say, by the weights' names; without causal masks and rotary frequencies.

    Raises:
        UserError: unless the folder holds complete safetensors files of floating-point numbers, with each weight once.
    """
    weights: dict[str, StoredWeight] = {}
    for path in list_weight_files(folder):
        for name, header in read_tensor_header(path).items():
            if is_ignored(name):
                continue
            if name in weights:
                raise UserError(f"{path}: {name} is also in {weights[name].path.name}")
            if not header.is_real:
                raise UserError(f"{path}: {name} is of type {header.dtype}; weights must be floating-point numbers")
            weights[name] = StoredWeight(path, header)
    return weights


def list_weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: one file, or those that its index names.

    Raises:
        UserError: if there are none, or the index is broken or names files outside of the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or single.is_symlink():  # takes precedence over the index, as in transformers
        return [single]
    if not index.exists() and not index.is_symlink():
        pickled = " (pickled weights are never read)" if any(folder.glob("*.bin")) else ""
        raise UserError(f"model folder {folder}: no model.safetensors in it{pickled}")
    content = read_json_object(index)
    files = content.get("weight_map")
    if "metadata" not in content:  # transformers needs it
        raise UserError(f"{index}: not an index of safetensors files, there is no key 'metadata'")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{index}: not an index of safetensors files")
    paths: list[Path] = []
    for name in sorted(set(files.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index}: {name!r} is not the name of a safetensors file in this folder")
        if not (folder / name).exists() and not (folder / name).is_symlink():
            raise UserError(f"model folder {folder}: no {name} in it")
        paths.append(folder / name)
    return paths


def is_ignored(name: str) -> bool:
    """Whether a stored tensor is no weight, but a causal mask or a rotary frequency."""
    return _IGNORED_BUFFERS.search(name) is not None


def count_weights(weights: Mapping[str, StoredWeight], patterns: Sequence[str]) -> int:
    """Return the number of numbers in the weights whose names match one of the patterns."""
    return sum(
        prod(weight.header.shape)
        for name, weight in weights.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    )
