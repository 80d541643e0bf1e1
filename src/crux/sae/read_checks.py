"""Checks of a job that reads the latents of a saved SAE, beyond the bounds of single keys. Torch-free."""

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from crux.config.errors import UserError
from crux.config.no_effect import check_has_effect
from crux.config.schema import LanguageModel
from crux.runs.checks import check_writable
from crux.sae.belonging import Place, check_belonging, saved_hooks
from crux.sae.checks import check_text
from crux.sae.llm_options import Llm
from crux.sae.options import model_source
from crux.sae.read_options import ReadJob, SavedSaeJob
from crux.sae.saved_config import CONFIG, read_saved_config
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights


def check_job(job: ReadJob, given: Collection[str]) -> None:
    """Check everything that can be checked before the subject is loaded.

    Raises:
        UserError: for the first problem, in one line.
    """
    if job.reading.influence_draws % 2:
        raise UserError(
            f"reading.influence_draws={job.reading.influence_draws}: must be even, since two halves are compared"
        )
    check_llm(job.llm, given)
    if job.cache is not None:
        check_writable("cache", job.cache)
    saes = {"sae.path": job.sae.path} | ({"against": job.against} if job.against is not None else {})
    for key, path in saes.items():
        check_saved_sae(path, key=key, hook_point=job.hook_point, model=job.model, force=job.sae.force)
    check_text(job.data, context=job.model.context)


def check_saved_sae(
    path: str, *, key: str, hook_point: str | None, model: LanguageModel, force: bool, insist: str = "sae.force=true"
) -> None:
    """Check that there is an SAE in a folder, and that it belongs to a model and a hook point.

    Args:
        key: the key on the command line, for messages.
        hook_point: the hook point that it shall read; None: the one in its metadata.
        force: do not ask whether it belongs there.
        insist: what has to be typed for that.

    Raises:
        UserError: in one line.
    """
    metadata = read_saved_config(find_sae_folder(Path(path), key=key)).metadata
    read, write = saved_hooks(metadata)
    if (read := hook_point or read) is None:
        raise UserError(f"{key}={path}: its {CONFIG} does not say which hook point the SAE reads; give hook_point=")
    place = Place(str(model_source(model)), model.process_weights, read, write or read)
    check_belonging(metadata, place, what=f"{key}: the SAE", force=force, insist=insist)


def check_llm(llm: Llm, given: Collection[str]) -> None:
    """Check what can be known about the LLM that explains latents without asking it.

    Raises:
        UserError: for the first problem, in one line.
    """
    if llm.base_url is None:
        check_has_effect(given, "llm.", because="no LLM is asked without llm.base_url")
        return
    if not llm.base_url.startswith(("http://", "https://")):
        raise UserError(
            f"llm.base_url={llm.base_url}: must begin with http:// or https://, such as http://127.0.0.1:8000/v1"
        )
    if not llm.model:
        raise UserError("llm.base_url needs llm.model=<name of the model at the endpoint>")
    if find_spec("openai") is None:
        raise UserError("llm.base_url needs the extra `llm`: pip install 'crux-interp[llm]'")


def check_subject(job: SavedSaeJob) -> None:
    """Check that the subject can be loaded; a hub model is downloaded for that.

    Raises:
        UserError: if folder or hub cannot be reached, or config.json or weights are missing or broken.
    """
    if job.model._target_ is None:
        check_weights(find_folder(model_source(job.model)))


def find_sae_folder(path: Path, *, key: str) -> Path:
    """Return the folder of the only SAE of a run folder, or the path itself if it is that of an SAE.

    Args:
        key: the key on the command line, for messages.

    Raises:
        UserError: if there is no SAE, or there are several.
    """
    path = path.expanduser()
    for folder in (path, path / "sae"):
        if (folder / CONFIG).is_file():
            return folder
    several = [f.parent for f in sorted([*path.glob(f"sae/*/{CONFIG}"), *path.glob(f"*/sae/{CONFIG}")])]
    if several:
        names = ", ".join(str(folder.relative_to(path)) for folder in several[:4])
        raise UserError(f"{key}={path} has {len(several)} SAEs; give the path of one of them: {names}")
    if not path.exists():
        raise UserError(f"{key}={path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{key}={path} is a file; give the run folder, or the folder of an SAE")
    unfinished = (path / "config.yaml").exists() and not (path / "DONE").exists()
    why = "the run is not finished" if unfinished else f"it has no {CONFIG}, and no sae/{CONFIG}"
    raise UserError(f"{key}={path} holds no SAE: {why}")
