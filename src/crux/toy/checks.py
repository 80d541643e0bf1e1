"""Checks of the configuration of an SAE on a toy model, beyond the bounds of single keys. Imports no torch."""

from collections.abc import Collection

from crux.config.errors import UserError
from crux.config.schema import Accelerator
from crux.sae.architectures.options import SaeOptions
from crux.sae.belonging import Place
from crux.sae.checks import check_sae_keys, check_saved_sae, check_sparsity
from crux.sae.losses.options import E2EDownstream, LossOptions
from crux.sae.site_checks import check_n_latents
from crux.toy.folder import HOOK, find_toy_model, read_instance_shape, read_n_hidden
from crux.toy.memory import check_toy_sae_memory
from crux.toy.options import ToySaeJob


def check_job(job: ToySaeJob, given: Collection[str]) -> None:
    """Check that the subject exists, that the loss and the architecture apply to it, and that the SAE has a possible size.

    Raises:
        UserError: for the first problem, in one line.
    """
    check_sae_keys(job.sae, given)
    folder = find_toy_model(job.model.path)
    check_sparsity(job.sae, job.sparsity, target_l0=job.target_l0)
    check_saved_sae(job.sae, [Place(str(job.model.path), False, HOOK, HOOK)])
    if job.sae.output_hook is not None:
        raise UserError("sae.output_hook has no meaning on a toy model, which has one hook point")
    if job.loss.skip_positions:
        raise UserError("loss.skip_positions has no meaning on a toy model, whose samples are no sequences")
    if job.trainer.accelerator is Accelerator.cuda:
        raise UserError("trainer.accelerator=cuda: an SAE on a toy model is trained on the CPU")
    _check_labels(job.loss, job.sae)
    streams, settings = read_instance_shape(folder)
    chosen = job.model.instance
    if chosen is not None and chosen >= streams * settings:
        raise UserError(f"model.instance={chosen}: {folder} has instances 0 to {streams * settings - 1}")
    check_n_latents(job.sae, read_n_hidden(folder), target_l0=job.target_l0)
    check_toy_sae_memory(job, read_n_hidden(folder), given=given)


def check_subject(job: ToySaeJob) -> None:
    """Do nothing: the toy model is on disk, and `check_job` has read it."""


def _check_labels(loss: LossOptions, sae: SaeOptions) -> None:
    """Check that the loss and the architecture apply to a network whose outputs are real numbers."""
    if isinstance(loss, E2EDownstream):
        raise UserError(
            f"loss={loss.name}: a toy model has nothing between its hidden layer and its output to compare; "
            "use loss=local or loss=e2e"
        )
    if not loss.real_outputs or sae.gradient_labels is not None:
        what = f"sae={sae.name}" if sae.gradient_labels is not None else f"loss={loss.name}"
        raise UserError(f"{what} needs a language model's labels; on a toy model use loss=local or loss=e2e")
