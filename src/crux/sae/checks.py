"""Checks of a job that trains SAEs on a language model, beyond the bounds of single keys. Torch-free."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from crux.config.bounds import check_bounds
from crux.config.errors import UserError
from crux.config.no_effect import check_has_effect
from crux.config.registry import options_by_group
from crux.config.schema import Data, Files
from crux.runs.checks import check_writable
from crux.sae.architectures.options import Init, SaeOptions
from crux.sae.belonging import Place, check_belonging
from crux.sae.losses.options import LossOptions
from crux.sae.memory import check_sae_memory
from crux.sae.options import Evaluation, SaeJob, SaeTrainer, Strategy, model_source
from crux.sae.saved_config import read_saved_config
from crux.sae.site_checks import check_sites
from crux.subjects.shape import read_shape
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights
from crux.text.paths import check_path


def check_job(job: SaeJob, given: Collection[str]) -> None:
    """Check everything that can be checked before the subject is loaded.

    Args:
        given: the keys on the command line. By them a hook point that the user gave is distinguished from the default of the layer.

    Raises:
        UserError: for the first problem, in one line.
    """
    if {"layer", "hook_point"} <= set(given):
        raise UserError("layer and hook_point both given: hook_point includes the layer, give one of them")
    if job.hook_points is not None and (other := sorted({"layer", "hook_point"} & set(given))):
        raise UserError(f"hook_points and {other[0]} both given: give one of them")
    if job.hook_points is not None and job.sae.output_hook is not None:
        raise UserError("sae.output_hook needs one hook_point, not hook_points")
    _check_keys(job, given)
    check_sae_keys(job.sae, given)
    _check_name("sae", job.sae)
    _check_name("loss", job.loss)
    _check_many(job, given)
    for single in job.per_sae().values() or (job,):
        check_bounds(single, "")
        check_sparsity(single.sae, single.sparsity, target_l0=single.target_l0)
        _check_tokens_left_out(single.sae, single.loss)
    _check_context(job.evaluation, job.loss, context=job.model.context)
    _check_devices(job.trainer, job.loss)
    if job.cache is not None:
        check_writable("cache", job.cache)
    model, processed = str(model_source(job.model)), job.model.process_weights
    check_saved_sae(job.sae, [Place(model, processed, read, write) for read, write in job.sites])
    check_text(job.data, context=job.model.context)
    source = model_source(job.model)
    on_disk = job.model._target_ is None and (source == "tiny" or isinstance(source, Path))
    shape = read_shape(find_folder(source)) if on_disk else None
    for single in job.per_sae().values() or (job,):
        check_sites(single, shape, hook_given="hook_point" in given)
    if shape is not None:
        check_sae_memory(job, shape, given=given)


def check_subject(job: SaeJob) -> None:
    """Check that the subject can be loaded and that the configuration fits it; a hub model is downloaded for that.

    Raises:
        UserError: if folder or hub cannot be reached, config.json or weights are missing or broken, or a hook point does not exist.
    """
    if job.model._target_ is not None:
        return
    folder = find_folder(model_source(job.model))
    shape = read_shape(folder)
    check_weights(folder)
    for single in job.per_sae().values() or (job,):
        check_sites(single, shape, hook_given=job.hook_point != f"blocks.{job.layer}.hook_resid_pre")
    check_sae_memory(job, shape, given=())


def _check_keys(job: SaeJob, given: Collection[str]) -> None:
    """Check that no key is given which another given key replaces."""
    model = job.model
    if model.path is not None and model._target_ is None:
        check_has_effect(given, "model.name", because="model.path takes precedence over it")
    if model.path is not None or model.name == "tiny":
        check_has_effect(
            given, "model.n_layers", because="config.json of the model says it; it is for models of the hub"
        )
    for key in {"sparsity", "sparsities"} & set(given):
        check_has_effect(given, "loss.default_sparsity", "sae.sparsity_scale", because=f"{key} is given")


def check_sae_keys(sae: SaeOptions, given: Collection[str]) -> None:
    """Check that every given key of an SAE has an effect.

    A key that switches others off is only held against them if it was not given itself, so that a grid may vary it.

    Raises:
        UserError: for the first key that has none.
    """
    if "sae.n_latents" in given and sae.n_latents is not None:
        check_has_effect(given, "sae.ratio", because="sae.n_latents takes precedence over it")
    if sae.output_hook is not None:
        check_has_effect(given, "sae.subtract_b_dec", because="a transcoder (sae.output_hook) never subtracts b_dec")
    if sae.init is Init.paper and "sae.init" not in given:
        check_has_effect(given, "sae.init_norm", because="sae.init=paper has norms of its own")
    if sae.start_from is not None:
        check_has_effect(given, "sae.init", "sae.init_norm", because="the weights are those of sae.start_from")
    if sae.auxk.coefficient == 0 and "sae.auxk.coefficient" not in given:
        check_has_effect(
            given, "sae.auxk.k", "sae.auxk.dead_after", because="there is no AuxK (sae.auxk.coefficient is 0)"
        )


def check_saved_sae(sae: SaeOptions, places: Sequence[Place]) -> None:
    """Check that the folder to start from holds a saved SAE, which belongs at the places where the job trains SAEs."""
    if sae.start_from is None:
        return
    key = f"sae.start_from={sae.start_from}"
    try:
        metadata = read_saved_config(Path(sae.start_from)).metadata
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    for place in places:
        check_belonging(metadata, place, what=f"{key}: the SAE", force=sae.force, insist="sae.force=true")


def check_text(data: Data, *, context: int) -> None:
    """Check that text files exist and are long enough for two sequences, and that no option is without effect."""
    if not isinstance(data, Files):
        return
    if data.path is None:
        for key in ("column", "split", "held_out_split"):
            if (value := getattr(data, key)) is not None:
                raise UserError(f"data.{key}={value} has no effect on the packaged text; give your own as data.path")
        return
    try:
        check_path(
            Path(data.path),
            column=data.column,
            split=data.split,
            held_out_split=data.held_out_split,
            min_tokens=2 * context,
        )
    except UserError as error:
        raise UserError(str(error) if str(error).startswith("data.") else f"data.path: {error}") from error


def check_shares(trainer: SaeTrainer, loss: LossOptions, *, devices: int) -> None:
    """Check that the batch can be divided so that each device's share has the same weight in the mean over the batch."""
    if devices == 1:
        return
    if trainer.batch % devices:
        raise UserError(
            f"trainer.batch={trainer.batch}: must be a multiple of {devices}, since {devices} devices share the batch"
        )
    if loss.max_norm is not None:
        raise UserError(
            "loss.max_norm leaves out different numbers of tokens on different devices, so their means cannot be averaged; "
            "use it with one device"
        )


def _check_name(group: str, options: SaeOptions | LossOptions) -> None:
    """Check that the name of an option was not changed: it identifies the option in tables and metadata."""
    names = [name for name, kind in options_by_group()[group].items() if kind is type(options)]
    if options.name not in names:
        option = {"sae": "an architecture", "loss": "a loss"}[group]
        raise UserError(f"{group}.name={options.name}: cannot be set; choose {option} by {group}=…")


def check_sparsity(sae: SaeOptions, sparsity: float, *, target_l0: float | None) -> None:
    """Check that λ and the target L0 fit the architecture."""
    if sae.fixed_k and sparsity != 0:
        raise UserError(f"sparsity={sparsity:g}: sae={sae.name} fixes L0 by sae.k={sae.arguments['k']} and has no λ")
    if target_l0 is not None and sae.fixed_k:
        raise UserError(f"target_l0={target_l0:g}: sae={sae.name} fixes L0 by sae.k; give sae.k={target_l0:g}")
    if target_l0 is not None and not sparsity > 0:
        raise UserError("target_l0 steers λ, which starts at sparsity: sparsity must be more than 0")


def _check_tokens_left_out(sae: SaeOptions, loss: LossOptions) -> None:
    """Check that the loss leaves out no token if the architecture selects latents over the whole batch."""
    if sae.batch_wide and loss.leaves_tokens_out:
        raise UserError(
            f"sae={sae.name} selects latents over the whole batch, so the loss cannot leave out any token: "
            "loss.max_norm must be null, and loss.skip_positions empty unless the loss is local"
        )


def _check_context(evaluation: Evaluation, loss: LossOptions, *, context: int) -> None:
    """Check that the evaluation has a whole sequence, and that skipped positions are positions of a sequence."""
    for key, n in (("tokens", evaluation.tokens), ("val_tokens", evaluation.val_tokens)):
        if n < context:
            raise UserError(f"evaluation.{key}={n}: must be {context} or more, the tokens of one sequence")
    if skipped := [p for p in loss.skip_positions if p >= context]:
        raise UserError(f"loss.skip_positions: {skipped} are not positions of a context of {context} tokens")
    if len(set(loss.skip_positions)) == context:
        raise UserError(
            f"loss.skip_positions: all {context} positions of the context are left out, so the loss has no token"
        )


def _check_many(job: SaeJob, given: Collection[str]) -> None:
    """Check a job that trains many SAEs at once, in one run each."""
    lists = {"sparsities": (job.sparsities, "sparsity"), "ks": (job.ks, "sae.k")}
    for key, (values, single_key) in lists.items():
        if values is None:
            continue
        if job.sae.list_key != key:
            advice = f"; give {job.sae.list_key}" if job.sae.list_key else ", one run for each value"
            architecture = {"sparsities": "relu", "ks": "topk"}[key]
            raise UserError(f"{key}: many SAEs at once are for sae={architecture}, not sae={job.sae.name}{advice}")
        if len(set(values)) < len(values):
            raise UserError(f"{key}={values}: contains a value twice")
        if single_key in given:
            raise UserError(f"{key} and {single_key} both given: give one of them")
        if job.trainer.devices != 1:
            raise UserError(f"{key}: many SAEs at once are trained on one device; trainer=ddp is for one large run")
        if job.target_l0 is not None:
            raise UserError(f"{key} and target_l0 both given: λ is either one of the list or steered")
        if job.hook_points is not None and len(job.hook_points) > 1:
            raise UserError(f"{key}: many SAEs at once need one hook point, not {len(job.hook_points)}")


def _check_devices(trainer: SaeTrainer, loss: LossOptions) -> None:
    """Check the options for several devices, and that each of them gets an equal share of the batch."""
    if trainer.strategy is Strategy.single:
        if trainer.devices != 1:
            raise UserError(f"trainer.devices={trainer.devices}: several devices need trainer=ddp, give that too")
        return
    if "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise UserError(
            "trainer=ddp starts its processes itself: run it once, without torchrun and as a single srun task"
        )
    if trainer.accelerator.value == "cpu" and trainer.devices is None:
        raise UserError("trainer.devices=null: on the CPU, give the number of processes, such as trainer.devices=2")
    if trainer.devices is not None:
        check_shares(trainer, loss, devices=trainer.devices)
