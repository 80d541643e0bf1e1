"""Intermediate results of an experiment, which a resumed run reads from its folder instead of computing them again."""

from collections.abc import Callable, Mapping

from safetensors.torch import load_file
from torch import Tensor

from crux.config.files import write_tensors
from crux.runs.run_folder import RunFolder


def compute_once(folder: RunFolder, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors that an earlier start of the run has saved under this name; otherwise compute and save them.

    The tensors must depend on the run's configuration only. The file is written completely or not at all.

    Args:
        name: name of the file, unique within the run.
        compute: called if there is no file yet.
    """
    path = folder.intermediate / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, dict(compute()))
    return load_file(path)
