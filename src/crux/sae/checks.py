"""Checks of a job that trains SAEs on a language model, beyond the bounds of single keys. Torch-free."""

import os
from collections.abc import Collection
from pathlib import Path

from crux.config.bounds import check_bounds
from crux.config.errors import UserError
from crux.config.registry import options_by_group
from crux.config.schema import Data, Files
from crux.runs.checks import check_writable
from crux.sae.architectures.options import SaeOptions
from crux.sae.losses.options import LossOptions
from crux.sae.options import Evaluation, SaeJob, SaeTrainer, Strategy, model_source
from crux.sae.site_checks import check_sites
from crux.subjects.shape import read_shape
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights
from crux.text.paths import check_path


def check_job(job: SaeJob, given: Collection[str]) -> None:
    """Check what can be checked before the subject is at hand.

    Args:
        given: the keys on the command line; they tell a hook point that was given from one that depends on the layer.

    Raises:
        UserError: for the first thing that cannot work, in one line.
    """
    if {"layer", "hook_point"} <= set(given):
        raise UserError("layer and hook_point both given: hook_point names the place in full, give one of them")
    if job.hook_points is not None and (one := sorted({"layer", "hook_point"} & set(given))):
        raise UserError(f"hook_points and {one[0]} both given: give one of them")
    if job.hook_points is not None and job.sae.output_hook is not None:
        raise UserError("sae.output_hook goes with one hook_point, not with hook_points")
    _check_name("sae", job.sae)
    _check_name("loss", job.loss)
    _check_many(job, given)
    for single in job.per_sae().values() or (job,):
        check_bounds(single, "")
        check_sparsity(single.sae, single.sparsity, target_l0=single.target_l0)
        _check_left_out(single.sae, single.loss)
    _check_lengths(job.evaluation, job.loss, context=job.model.context)
    _check_devices(job.trainer, job.loss)
    if job.cache is not None:
        check_writable("cache", job.cache)
    check_saved_sae(job.sae.start_from)
    check_text(job.data, context=job.model.context)
    source = model_source(job.model)
    on_disk = job.model._target_ is None and (source == "tiny" or isinstance(source, Path))
    shape = read_shape(find_folder(source)) if on_disk else None
    for single in job.per_sae().values() or (job,):
        check_sites(single, shape, hook_given="hook_point" in given)


def check_subject(job: SaeJob) -> None:
    """Check that the subject is within reach and whole, and that the configuration fits it; a hub model is fetched for that.

    Raises:
        UserError: no such folder, no hub within reach, config.json or weights missing or broken, no such hook point in it.
    """
    if job.model._target_ is not None:
        return
    folder = find_folder(model_source(job.model))
    shape = read_shape(folder)
    check_weights(folder)
    for single in job.per_sae().values() or (job,):
        check_sites(single, shape, hook_given=job.hook_point != f"blocks.{job.layer}.hook_resid_pre")


def check_saved_sae(folder: str | None) -> None:
    """Check that the SAE to start from is a saved one."""
    if folder is not None and not (Path(folder) / "cfg.json").is_file():
        raise UserError(f"sae.start_from={folder}: not an SAE folder, there is no cfg.json in it")


def check_text(data: Data, *, context: int) -> None:
    """Check that files of text are there and long enough for two sequences."""
    if isinstance(data, Files) and data.path is not None:
        try:
            check_path(Path(data.path), column=data.column, min_tokens=2 * context)
        except UserError as error:
            raise UserError(f"data.path: {error}") from error


def check_shares(trainer: SaeTrainer, loss: LossOptions, *, devices: int) -> None:
    """Check that every device's share of a batch counts the same in the batch's mean."""
    if devices == 1:
        return
    if trainer.batch % devices:
        raise UserError(
            f"trainer.batch={trainer.batch}: the sequences of all {devices} devices together, must be a multiple of {devices}"
        )
    if loss.max_norm is not None:
        raise UserError(
            "loss.max_norm leaves out more tokens on one device than on another, whose means would not make the batch's; "
            "use it with one device"
        )


def _check_name(group: str, options: SaeOptions | LossOptions) -> None:
    """Check that nobody renames an option: its name says in tables and metadata what it is."""
    own = [option for option, kind in options_by_group()[group].items() if kind is type(options)]
    if options.name not in own:
        what = {"sae": "an architecture", "loss": "a loss"}[group]
        raise UserError(f"{group}.name={options.name}: cannot be given; choose {what} by {group}=…")


def check_sparsity(sae: SaeOptions, sparsity: float, *, target_l0: float | None) -> None:
    """Check λ, and the L0 towards which it is to be steered, against what the architecture can do."""
    if sae.fixed_k and sparsity != 0:
        raise UserError(f"sparsity={sparsity:g}: sae={sae.name} fixes L0 by sae.k={sae.arguments['k']} and has no λ")
    if target_l0 is not None and sae.fixed_k:
        raise UserError(f"target_l0={target_l0:g}: sae={sae.name} fixes L0 by sae.k; say sae.k={target_l0:g}")
    if target_l0 is not None and not sparsity > 0:
        raise UserError("target_l0 steers λ from where sparsity starts it: sparsity must be more than 0")


def _check_left_out(sae: SaeOptions, loss: LossOptions) -> None:
    if sae.batch_wide and loss.leaves_tokens_out:
        raise UserError(
            f"sae={sae.name} chooses over the whole batch, so no token of it can be left out of the loss: "
            "loss.max_norm must be null, and loss.skip_positions empty unless the loss is local"
        )


def _check_lengths(evaluation: Evaluation, loss: LossOptions, *, context: int) -> None:
    for key, n in (("tokens", evaluation.tokens), ("val_tokens", evaluation.val_tokens)):
        if n < context:
            raise UserError(f"evaluation.{key}={n}: must be {context} or more, the tokens of one sequence")
    if skipped := [p for p in loss.skip_positions if p >= context]:
        raise UserError(f"loss.skip_positions: {skipped} are not positions of a context of {context} tokens")


def _check_many(job: SaeJob, given: Collection[str]) -> None:
    """Check a job that trains many SAEs at once."""
    lists = {"sparsities": (job.sparsities, "sparsity"), "ks": (job.ks, "sae.k")}
    for key, (values, single) in lists.items():
        if values is None:
            continue
        if job.sae.list_key != key:
            other = f"; give {job.sae.list_key}" if job.sae.list_key else ", one run for each value"
            suited = {"sparsities": "relu", "ks": "topk"}[key]
            raise UserError(f"{key}: many SAEs at once are for sae={suited}, not sae={job.sae.name}{other}")
        if len(set(values)) < len(values):
            raise UserError(f"{key}={values}: names a value twice")
        if single in given:
            raise UserError(f"{key} and {single} both given: give one of them")
        if job.trainer.devices != 1:
            raise UserError(f"{key}: many SAEs at once are trained on one device; trainer=ddp is for one large run")
        if job.target_l0 is not None:
            raise UserError(f"{key} and target_l0 both given: λ is either one of the list or steered")
        if job.hook_points is not None and len(job.hook_points) > 1:
            raise UserError(f"{key}: many SAEs at once stand at one hook point, not at {len(job.hook_points)}")


def _check_devices(trainer: SaeTrainer, loss: LossOptions) -> None:
    """Check that several devices are asked for in a way that can work: each has an equal share of the batch."""
    if trainer.strategy is Strategy.single:
        if trainer.devices != 1:
            raise UserError(
                f"trainer.devices={trainer.devices}: several devices share a run under trainer=ddp, say that too"
            )
        return
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise UserError(
            "trainer=ddp starts its processes itself: run it once, without torchrun and as one task of srun"
        )
    if trainer.accelerator.value == "cpu" and trainer.devices is None:
        raise UserError("trainer.devices=null: on the CPU, say over how many processes, such as trainer.devices=2")
    if trainer.devices is not None:
        check_shares(trainer, loss, devices=trainer.devices)
