"""Intermediate results of an experiment, which a resumed run reads from its folder instead of computing them again."""

import sys
from collections.abc import Callable, Mapping

from torch import Tensor

from crux.config.checked_tensors import DamagedTensorsError, read_checked_tensors, write_checked_tensors
from crux.runs.run_folder import RunFolder


def compute_once(folder: RunFolder, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that an earlier start of the run has saved under this name; otherwise compute and save them.

    The tensors must depend on the run's configuration only. The file is written completely or not at all. A damaged one is computed again,
    and a line says so.

    Args:
        name: name of the file, unique within the run.
        compute: called if there is no file yet.
    """
    path = folder.intermediate / f"{name}.safetensors"
    if path.exists():
        try:
            return read_checked_tensors(path, required=True)
        except DamagedTensorsError as error:
            print(f"crux: {error}; computing it again", file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checked_tensors(path, dict(compute()))
    return read_checked_tensors(path, required=True)
