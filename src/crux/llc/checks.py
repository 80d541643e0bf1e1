"""Checks of learning-coefficient jobs, beyond the bounds of single keys. This module does not import torch."""

import math
from collections.abc import Collection
from itertools import pairwise

from crux.config.errors import UserError
from crux.config.no_effect import check_has_effect
from crux.config.schema import Accelerator
from crux.llc.memory import check_chains_memory
from crux.llc.options import (
    Behavioural,
    LanguageModelJob,
    LinearNetworks,
    Llc,
    LlcJob,
    SaeTrainingJob,
    SamplerName,
    Sampling,
    ToyInstance,
    ToyTrainingJob,
)
from crux.runs.checks import check_writable
from crux.sae.belonging import Place
from crux.sae.checks import check_sae_keys, check_saved_sae, check_sparsity, check_text
from crux.sae.options import model_source
from crux.subjects.shape import read_shape
from crux.subjects.source import find_folder
from crux.subjects.weight_files import check_weights, count_weights
from crux.toy.folder import HOOK, find_toy_model, read_instance_shape
from crux.toy.memory import check_toy_memory

SAMPLER_KEYS = {"leapfrogs": (SamplerName.hmc,), "whitened": (SamplerName.hmc, SamplerName.mala)}
"""Keys that have a meaning only for some samplers."""


def check_job(job: LlcJob, given: Collection[str]) -> None:
    """Check everything that does not need the language model; `given` are the keys on the command line.

    Raises:
        UserError: in one line, for the first problem found.
    """
    if type(job.llc) is Llc or "llc.experiment" in given:
        raise UserError(f"llc.experiment={job.llc.experiment}: choose an experiment, experiment=llc/…")
    if isinstance(job.llc, Sampling):
        for key, samplers in SAMPLER_KEYS.items():
            if f"llc.{key}" in given and job.llc.sampler not in samplers:
                allowed = " and ".join(sampler.value for sampler in samplers)
                raise UserError(f"llc.{key} has no meaning for llc.sampler={job.llc.sampler.value}, only for {allowed}")
    match job:
        case ToyTrainingJob():
            if job.model.path is not None:
                check_has_effect(given, "toy.", "optimizer.", because="the toy model is that of model.path")
            check_toy_memory(job.toy, job.trainer, given=given)
            check_toy_instance(job.model, without_path=job.toy.seeds * len(job.toy.densities))
        case SaeTrainingJob():
            check_sae_training(job)
            check_sae_keys(job.sae, given)
        case LanguageModelJob():
            if job.cache is not None:
                check_writable("cache", job.cache)
            check_text(job.data, context=job.model.context)
        case _:
            pass
    accelerator = getattr(job.trainer, "accelerator", Accelerator.cpu)
    weights, keys = _count_weights(job)
    check_chains_memory(job.llc, weights=weights, weight_keys=keys, accelerator=accelerator, given=given)


def _count_weights(job: LlcJob) -> tuple[int, tuple[str, ...]]:
    """Return the number of weights that a chain moves, at least, and the keys that it grows with."""
    match job:
        case ToyTrainingJob(toy=toy):
            return toy.n_features * toy.n_hidden + toy.n_features, ("toy.n_features", "toy.n_hidden")
        case SaeTrainingJob(sae=sae):
            return 2 * (sae.n_latents or 1), ("sae.n_latents",)
        case LlcJob(llc=Behavioural(hidden=hidden)):
            return sum(hidden) + sum(a * b for a, b in pairwise(hidden)), ("llc.hidden",)
        case LlcJob(llc=LinearNetworks(widths=widths)):
            return sum(a * b for layers in widths for a, b in pairwise(layers)), ("llc.widths",)
        case _:
            return 1, ()


def check_subject(job: LlcJob) -> None:
    """Check that a language model's files are available and complete; download a hub model if necessary."""
    if isinstance(job, LanguageModelJob):
        folder = find_folder(model_source(job.model))
        read_shape(folder)
        weights = count_weights(check_weights(folder), job.llc.parameters)
        check_chains_memory(
            job.llc, weights=weights, weight_keys=("llc.parameters",), accelerator=job.trainer.accelerator, given=()
        )


def check_toy_instance(model: ToyInstance, *, without_path: int) -> None:
    """Check that `model.path`, if given, contains a toy model, and that `model.instance` exists.

    Args:
        without_path: number of instances if no path is given.
    """
    n = without_path if model.path is None else math.prod(read_instance_shape(find_toy_model(model.path)))
    if model.instance is not None and model.instance >= n:
        raise UserError(f"model.instance={model.instance}: the model has {n} instances, allowed are 0 to {n - 1}")


def check_sae_training(job: SaeTrainingJob) -> None:
    """Check the options of the SAE and of its training."""
    check_toy_instance(job.model, without_path=1)
    check_sparsity(job.sae, job.sparsity, target_l0=None)
    model = "pentagon" if job.model.path is None else job.model.path
    check_saved_sae(job.sae, [Place(model, False, HOOK, HOOK)])
    if job.sae.output_hook is not None:
        raise UserError("sae.output_hook has no meaning on a toy model, which has one hook point")
    if job.sae.gradient_labels is not None:
        raise UserError(f"sae={job.sae.name} needs a language model's labels, which a toy model does not have")
    if job.trainer.accelerator is Accelerator.cuda:
        raise UserError("trainer.accelerator=cuda: an SAE on a toy model is trained on the CPU")
