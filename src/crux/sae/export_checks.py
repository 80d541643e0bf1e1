"""Checks of a job that exports the latents of a saved SAE, beyond the bounds of single keys. Torch-free."""

from collections.abc import Collection
from pathlib import Path

from crux.config.errors import UserError
from crux.runs.checks import check_writable
from crux.runs.run_folder import RunFolder
from crux.sae.checks import check_text
from crux.sae.export_options import ExportJob
from crux.sae.read_checks import check_saved_sae, check_subject

__all__ = ["check_job", "check_subject"]


FEATURES = "features.parquet"
"""The table of a reading."""


def check_job(job: ExportJob, given: Collection[str]) -> None:
    """Check everything that can be checked before the subject is loaded.

    Raises:
        UserError: for the first problem, in one line.
    """
    if job.cache is not None:
        check_writable("cache", job.cache)
    check_saved_sae(job.sae.path, key="sae.path", hook_point=job.hook_point, model=job.model, force=job.sae.force)
    if job.read is not None:
        if "tokens" in given:
            raise UserError("tokens and read both given: with a reading, its text is used; give one of them")
        read_text_sizes(job.read)
    for key in ("model_id", "set_name"):
        name = getattr(job.neuronpedia, key)
        if name is not None and (not name or name.startswith(".") or "/" in name or "\\" in name):
            raise UserError(f"neuronpedia.{key}={name}: cannot be the name of a folder, as which it is used")
    check_text(job.data, context=job.model.context)


def read_text_sizes(path: str) -> tuple[int, int]:
    """Return the numbers of training and of held-out tokens of a finished reading.

    Args:
        path: its run folder, the value of `read`.

    Raises:
        UserError: if it is no run folder of a finished `experiment=read`.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"read={path}: no such folder")
    run = RunFolder(folder)
    if not (folder / "config.yaml").is_file() or "reading" not in (config := run.read_config()):
        raise UserError(f"read={path}: not a run folder of experiment=read")
    if not run.done or not (folder / FEATURES).is_file():
        raise UserError(f"read={path}: the reading is not finished; resume=true continues it")
    sizes = config["reading"]
    n_fit, n_held_out = (
        (sizes.get("fit_tokens"), sizes.get("held_out_tokens")) if isinstance(sizes, dict) else (None, None)
    )
    if not (isinstance(n_fit, int) and isinstance(n_held_out, int) and min(n_fit, n_held_out) > 0):
        raise UserError(f"read={path}: its config.yaml does not say how much text was read")
    return n_fit, n_held_out
