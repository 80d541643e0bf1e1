"""Checks of the jobs on degeneracy and interaction bases, beyond the bounds of single keys. Torch-free."""

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

from crux.config.errors import UserError
from crux.config.schema import Data, LanguageModel, Model
from crux.degeneracy.basis_options import Dictionaries, LanguageCompareOptions, LastBasis
from crux.degeneracy.networks.addition_folder import find_addition_folder
from crux.degeneracy.options import (
    AdditionBasesJob,
    BasesJob,
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
from crux.subjects.hooks import FINAL, check_hook, hook_names
from crux.subjects.shape import Shape, read_shape
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights

TRAINING_EXPERIMENT = "experiment=interaction_basis/modular_addition_training"
"""What makes the run folders that `model.path` may name."""


def measures_language_model(options: Spectra, model: LanguageModel) -> bool:
    """Return whether spectra are those of a language model, not of a perceptron."""
    addition = model.path is not None and find_addition_folder(Path(model.path)) is not None
    return options.network is MeasuredNetwork.model and not addition


def check_job(job: ExperimentJob, given: Collection[str]) -> None:
    """Check what can be checked before the subject is at hand.

    Args:
        given: the keys on the command line.

    Raises:
        UserError: for the first thing that cannot work, in one line.
    """
    match job:
        case SpectraJob() if measures_language_model(job.degeneracy, job.model):
            check_language_data(job.data, model=job.model, cache=job.cache)
        case SpectraJob(degeneracy=options, model=model):
            check_perceptron(options.network, path=model.path, hook_points=job.hook_points, given=given)
        case SynchronisedJob(model=Model(path=str(path))):
            check_relu_network(path)
        case AdditionBasesJob(model=Model(path=str(path))):
            check_addition_folder(path)
        case LanguageBasesJob(interaction_basis=options):
            check_last_basis(options.compare)
            check_language_data(job.data, model=job.model, cache=job.cache)
        case BasesJob(interaction_basis=Dictionaries() as options):
            check_dictionaries(options, given)


def check_subject(job: ExperimentJob) -> None:
    """Check that a language model can be reached and that the configuration fits it; a hub model is fetched for that."""
    match job:
        case SpectraJob() if measures_language_model(job.degeneracy, job.model):
            check_hook_points(job.model, job.hook_points)
        case LanguageBasesJob(interaction_basis=options):
            check_bases_fit(options.compare, job.model)


def check_perceptron(
    network: MeasuredNetwork, *, path: str | None, hook_points: Sequence[str] | None, given: Collection[str]
) -> None:
    """Check that nothing is given that only a language model has, for spectra of a perceptron."""
    if network is MeasuredNetwork.mlp:
        if own := sorted(key for key in given if key.startswith(("model", "hook", "data"))):
            raise UserError(
                f"{own[0]} has no meaning for degeneracy.network=mlp, a perceptron that the experiment trains"
            )
        return
    check_addition_folder(str(path))
    if hook_points is not None:
        raise UserError("hook_points: of a modular-addition network, the MLP's own hook points are looked at")


def check_relu_network(path: str) -> None:
    """Check that the network in a folder has ReLU neurons."""
    if find_addition_folder(Path(path)) is None:
        raise UserError(
            f"model.path={path}: only ReLU neurons can be synchronised; allowed is the run folder of {TRAINING_EXPERIMENT}, "
            "or no model.path: a perceptron is trained"
        )
    check_addition_folder(path)


def check_addition_folder(path: str) -> None:
    """Check that a trained modular-addition network with whole weights is in a folder."""
    if (folder := find_addition_folder(Path(path))) is None:
        raise UserError(
            f"model.path={path}: no trained modular-addition network there; give the run folder of {TRAINING_EXPERIMENT}"
        )
    check_weights(folder)


def check_dictionaries(options: Dictionaries, given: Collection[str]) -> None:
    """Check that the folders of saved SAEs are some."""
    for folder in options.saes or []:
        if not (Path(folder) / "cfg.json").is_file():
            raise UserError(f"interaction_basis.saes: {folder} is not an SAE folder, there is no cfg.json in it")
    if "interaction_basis.dictionaries.tokens" in given and not options.saes:
        raise UserError("interaction_basis.dictionaries.tokens: is for saved SAEs, which interaction_basis.saes names")


def check_last_basis(compare: LanguageCompareOptions) -> None:
    """Check that the basis of the logits is at the hook point that they are read from."""
    if compare.last is LastBasis.logits and compare.hooks[-1] != FINAL:
        raise UserError(
            f"interaction_basis.compare.last=logits: the last hook point must be {FINAL}, which the logits are read from"
        )


def check_language_data(data: Data, *, model: LanguageModel, cache: str | None) -> None:
    """Check the text for a language model, and the folder that it is kept in."""
    check_text(data, context=model.context)
    if cache is not None:
        check_writable("cache", cache)


def check_bases_fit(compare: LanguageCompareOptions, model: LanguageModel) -> None:
    """Check that a language model is within reach and whole, and has the hook points and the context of a comparison."""
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
    """Check that a language model is within reach and whole, and has the hook points: two or more, in its order.

    Raises:
        UserError: in one line, otherwise.
    """
    shape = _read_model_shape(model)
    if model.context > shape.n_ctx:
        raise UserError(f"model.context={model.context}: the model's context has {shape.n_ctx} tokens")
    if hook_points is None:
        return
    found = [check_hook(name, n_layers=shape.n_layers, resid_mid=shape.resid_mid) for name in hook_points]
    if len(found) < 2:
        raise UserError(f"hook_points={hook_points}: two or more are needed, activations go from one to the next")
    for a, b in pairwise(found):
        if a.order >= b.order:
            raise UserError(f"hook_points: {b.name} does not lie behind {a.name} in the network")


def _read_model_shape(model: LanguageModel) -> Shape:
    """Return a language model's shape; a hub model is fetched for that."""
    folder = find_folder(model_source(model))
    shape = read_shape(folder)
    check_weights(folder)
    return shape
