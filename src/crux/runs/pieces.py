"""Pieces of an experiment's work that are computed once: a run that is continued takes them from its folder."""

from collections.abc import Callable, Mapping

from safetensors.torch import load_file
from torch import Tensor

from crux.config.files import write_tensors
from crux.runs.run_folder import RunFolder


def compute_once(folder: RunFolder, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of a piece of work: those that an earlier start of the run left, or newly computed ones, which are kept.

    A piece must be a pure function of the run's configuration. It is written whole or not at all, and bit for bit.

    Args:
        name: of the piece, unique within the run; the name of its file.
    """
    path = folder.pieces / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, dict(compute()))
    return load_file(path)
