"""Checks of a job that compares saved SAEs, beyond the bounds of single keys. Torch-free."""

from collections.abc import Collection
from pathlib import Path

from crux.config.errors import UserError
from crux.runs.checks import check_writable
from crux.sae.belonging import network_place, saved_hooks
from crux.sae.checks import check_text
from crux.sae.compare_options import CompareJob
from crux.sae.read_checks import check_saved_sae, check_subject, find_sae_folder
from crux.sae.saved_config import read_saved_config

__all__ = ["check_job", "check_subject"]


def check_job(job: CompareJob, given: Collection[str]) -> None:
    """Check everything that can be checked before the subject is loaded.

    Raises:
        UserError: for the first problem, in one line.
    """
    del given
    if job.cache is not None:
        check_writable("cache", job.cache)
    folders = [find_sae_folder(Path(path), key=f"saes[{i}]").resolve() for i, path in enumerate(job.saes)]
    for i, folder in enumerate(folders):
        if folder in folders[:i]:
            raise UserError(f"saes[{i}]={job.saes[i]} is also saes[{folders.index(folder)}]: name each SAE once")
    hooks: set[tuple[str, ...]] = set()
    for i, path in enumerate(job.saes):
        check_saved_sae(
            path, key=f"saes[{i}]", hook_point=job.hook_point, model=job.model, force=job.force, insist="force=true"
        )
        read, write = saved_hooks(read_saved_config(folders[i]).metadata)
        hooks.add(
            tuple(network_place(hook or "") for hook in (job.hook_point or read, write or job.hook_point or read))
        )
    if len(hooks) > 1:
        where = ", ".join(sorted(" to ".join(map(str, dict.fromkeys(hook))) for hook in hooks))
        raise UserError(f"saes: they read or write different hook points ({where}), so they are not compared")
    check_text(job.data, context=job.model.context)
