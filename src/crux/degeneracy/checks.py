"""Checks of the jobs on degeneracy and interaction bases, beyond the bounds of single keys. Torch-free."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

from crux.config.errors import UserError
from crux.config.no_effect import check_has_effect
from crux.config.schema import Accelerator, Data, LanguageModel, Model
from crux.degeneracy.basis_options import (
    Dictionaries,
    LanguageBases,
    LanguageCompareOptions,
    LastBasis,
    MlpBases,
    ModularAdditionBases,
    ModularAdditionTraining,
)
from crux.degeneracy.memory import check_addition_memory, check_comparison_memory, check_perceptron_memory
from crux.degeneracy.networks.addition_folder import find_addition_folder
from crux.degeneracy.options import (
    AdditionBasesJob,
    BasesJob,
    Degeneracy,
    ExperimentJob,
    LanguageBasesJob,
    MeasuredNetwork,
    Spectra,
    SpectraJob,
    SynchronisedJob,
)
from crux.runs.checks import check_writable
from crux.sae.checks import check_text
from crux.sae.options import model_source
from crux.sae.saved_config import read_saved_config
from crux.subjects.hooks import FINAL, check_hook, hook_names
from crux.subjects.shape import Shape, read_shape
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights

TRAINING_EXPERIMENT = "experiment=interaction_basis/modular_addition_training"
"""The command that creates the run folders that `model.path` accepts."""


def measures_language_model(options: Spectra, model: LanguageModel) -> bool:
    """Return True if spectra are measured in a language model, and False for a perceptron."""
    addition = model.path is not None and find_addition_folder(Path(model.path)) is not None
    return options.network is MeasuredNetwork.model and not addition


def check_job(job: ExperimentJob, given: Collection[str]) -> None:
    """Check everything that can be checked before the subject is loaded.

    Args:
        given: the keys given on the command line.

    Raises:
        UserError: for the first problem, in one line.
    """
    _check_sizes(job, given)
    match job:
        case SpectraJob() if measures_language_model(job.degeneracy, job.model):
            check_has_effect(
                given, "degeneracy.hidden", "degeneracy.steps", because="no perceptron is trained (degeneracy.network)"
            )
            check_language_data(job.data, model=job.model, cache=job.cache)
        case SpectraJob(degeneracy=options, model=model):
            check_perceptron(options.network, path=model.path, hook_points=job.hook_points, given=given)
        case SynchronisedJob(model=Model(path=str(path))):
            check_has_effect(
                given, "degeneracy.hidden", "degeneracy.steps", because="the network is that of model.path"
            )
            check_relu_network(path)
        case AdditionBasesJob(model=Model(path=str(path))):
            unread = ("interaction_basis.addition.", "optimizer.", "trainer.max_steps", "callbacks", "callbacks.")
            check_has_effect(given, *unread, because="the network is that of model.path")
            check_addition_folder(path)
        case LanguageBasesJob(interaction_basis=options):
            check_last_basis(options.compare)
            check_language_data(job.data, model=job.model, cache=job.cache)
        case BasesJob(interaction_basis=Dictionaries() as options):
            check_dictionaries(options, given)


def _check_sizes(job: ExperimentJob, given: Collection[str]) -> None:
    """Check that the networks that the experiment trains, and its samples, fit into memory."""
    accelerator = getattr(job.trainer, "accelerator", Accelerator.cpu)
    match job.section:
        case Degeneracy(hidden=hidden):
            check_perceptron_memory(hidden, inputs=64, key="degeneracy.hidden")
        case MlpBases(perceptron=perceptron, compare=compare):
            check_perceptron_memory(perceptron.hidden, inputs=12, key="interaction_basis.perceptron.hidden")
            check_comparison_memory(
                compare, numbers_per_sample=min(perceptron.hidden), accelerator=accelerator, given=given
            )
        case LanguageBases(compare=compare):
            check_comparison_memory(compare, numbers_per_sample=compare.length, accelerator=accelerator, given=given)
        case ModularAdditionTraining(addition=addition):
            check_addition_memory(addition, accelerator=accelerator, given=given)
        case ModularAdditionBases(addition=addition, compare=compare):
            check_addition_memory(addition, accelerator=accelerator, given=given)
            check_comparison_memory(compare, numbers_per_sample=1, accelerator=accelerator, given=given)
        case _:
            pass


def check_subject(job: ExperimentJob) -> None:
    """Check that a language model is available and that the configuration fits it. A hub model is downloaded for this."""
    match job:
        case SpectraJob() if measures_language_model(job.degeneracy, job.model):
            check_hook_points(job.model, job.hook_points)
        case LanguageBasesJob(interaction_basis=options):
            check_bases_fit(options.compare, job.model)


def check_perceptron(
    network: MeasuredNetwork, *, path: str | None, hook_points: Sequence[str] | None, given: Collection[str]
) -> None:
    """Check that no options of a language model are given for the spectra of a perceptron."""
    check_has_effect(given, "degeneracy.sequences", "cache", because="the network reads no text")
    if network is MeasuredNetwork.mlp:
        if foreign := sorted(key for key in given if key.startswith(("model", "hook", "data"))):
            raise UserError(
                f"{foreign[0]} has no meaning for degeneracy.network=mlp, a perceptron that the experiment trains"
            )
        return
    check_addition_folder(str(path))
    if hook_points is not None:
        raise UserError(
            "hook_points: not for a modular-addition network, whose spectra are measured at the MLP's hook points"
        )


def check_relu_network(path: str) -> None:
    """Check that the network in a folder has ReLU neurons."""
    if find_addition_folder(Path(path)) is None:
        raise UserError(
            f"model.path={path}: only ReLU neurons can be synchronised; allowed is the run folder of {TRAINING_EXPERIMENT}, "
            "or no model.path, to train a perceptron"
        )
    check_addition_folder(path)


def check_addition_folder(path: str) -> None:
    """Check that a folder contains a trained modular-addition network with intact weights."""
    if (folder := find_addition_folder(Path(path))) is None:
        raise UserError(
            f"model.path={path}: no trained modular-addition network there; give the run folder of {TRAINING_EXPERIMENT}"
        )
    check_weights(folder)


def check_dictionaries(options: Dictionaries, given: Collection[str]) -> None:
    """Check that the folders of saved SAEs are SAE folders."""
    for folder in options.saes or []:
        try:
            read_saved_config(Path(folder))
        except UserError as error:
            raise UserError(f"interaction_basis.saes: {error}") from error
    if "interaction_basis.dictionaries.tokens" in given and not options.saes:
        raise UserError(
            "interaction_basis.dictionaries.tokens: is only for saved SAEs, which are given by interaction_basis.saes"
        )


def check_last_basis(compare: LanguageCompareOptions) -> None:
    """Check that the basis of the logits is at the hook point from which the logits are computed."""
    if compare.last is LastBasis.logits and compare.hooks[-1] != FINAL:
        raise UserError(
            f"interaction_basis.compare.last=logits: the last hook point must be {FINAL}, from which the logits are computed"
        )


def check_language_data(data: Data, *, model: LanguageModel, cache: str | None) -> None:
    """Check the text for a language model, and the folder of the tokenised text."""
    check_text(data, context=model.context)
    if cache is not None:
        check_writable("cache", cache)


def check_bases_fit(compare: LanguageCompareOptions, model: LanguageModel) -> None:
    """Check that a language model is available and intact, and has the hook points and context length of a comparison."""
    shape = _read_model_shape(model)
    names = [*hook_names(shape.n_layers, resid_mid=shape.resid_mid), FINAL]
    for hook in compare.hooks:
        if hook != FINAL:
            check_hook(hook, n_layers=shape.n_layers, resid_mid=shape.resid_mid)
    for a, b in pairwise(compare.hooks):
        if names.index(a) >= names.index(b):
            raise UserError(
                f"interaction_basis.compare.hooks: {a}, {b} are out of order; name each once, in the network's order"
            )
    if compare.length > shape.n_ctx:
        raise UserError(
            f"interaction_basis.compare.length={compare.length}: the model's context has {shape.n_ctx} tokens"
        )


def check_hook_points(model: LanguageModel, hook_points: Sequence[str] | None) -> None:
    """Check that a language model is available and intact, and that it has these hook points: two or more, in order."""
    shape = _read_model_shape(model)
    if model.context > shape.n_ctx:
        raise UserError(f"model.context={model.context}: the model's context has {shape.n_ctx} tokens")
    if hook_points is None:
        return
    hooks = [check_hook(name, n_layers=shape.n_layers, resid_mid=shape.resid_mid) for name in hook_points]
    if len(hooks) < 2:
        raise UserError(f"hook_points={hook_points}: two or more are needed")
    for a, b in pairwise(hooks):
        if a.order >= b.order:
            raise UserError(f"hook_points: {b.name} does not come after {a.name} in the network")


def _read_model_shape(model: LanguageModel) -> Shape:
    """Return a language model's shape. A hub model is downloaded for this."""
    folder = find_folder(model_source(model))
    shape = read_shape(folder)
    check_weights(folder)
    return shape
