"""Builds the SAEs of a job, the module that trains them, and the training batches from the job's options."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from crux.config.errors import UserError
from crux.config.targets import find_class
from crux.sae.architectures.options import SaeOptions
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.typical_activation import TypicalActivation
from crux.sae.formats import saelens
from crux.sae.label_gradients import LabelGradients
from crux.sae.losses.loss import Loss
from crux.sae.losses.options import LossOptions
from crux.sae.options import SaeJob, SparseTraining
from crux.sae.training.activations import ShuffledActivations
from crux.sae.training.passes import ActivationPasses, Passes, TokenPasses
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity, Steering
from crux.subjects.subject import Subject
from crux.text.batches import Batches
from crux.text.tokens import Tokens
from crux.training.data import ConcatenatedBatches


def build_sites(
    options: SaeOptions, sites: Sequence[tuple[str, str]], *, typical: Mapping[str, TypicalActivation], seed: int
) -> list[Site]:
    """Return a new SAE, or the saved SAE to start from, at each pair of hook points; the seed determines new weights."""
    return [
        Site(read, write, build_sae(options, read=typical[read], written=typical[write], seed=seed))
        for read, write in sites
    ]


def build_sae(options: SaeOptions, *, read: TypicalActivation, written: TypicalActivation, seed: int) -> SAE:
    """Return a new SAE for activations with these statistics, or the saved SAE to start from.

    Args:
        read: statistics of the activation that the SAE reads.
        written: statistics of the activation that it reconstructs.
    """
    d_model, d_out = read.mean.shape[0], written.mean.shape[0]
    transcodes = options.output_hook is not None
    architecture = find_class(options._target_, key="sae._target_", base=SAE)
    sae = architecture(
        d_model=d_model,
        d_out=d_out,
        n_latents=options.count_latents(d_model),
        init=options.init.value,
        init_norm=options.init_norm,
        subtract_b_dec=options.subtract_b_dec and not transcodes,
        generator=torch.Generator().manual_seed(seed),
        **options.arguments,
    )
    saelens.check_saveable(sae, transcodes=transcodes)
    input_scale, output_scale = (
        _normalising_scale(activation) if options.normalize_activations else 1.0 for activation in (read, written)
    )
    # start_at multiplies by the scale, which leaves the bias of the initialisation unchanged
    mean = written.mean.cpu() if options.bias_at_mean else sae.b_dec.detach() / output_scale
    sae.start_at(mean, input_scale=input_scale, output_scale=output_scale)
    if options.start_from is not None:
        saved, _ = saelens.load_sae(Path(options.start_from))
        try:
            sae.start_from(saved)
        except UserError as error:
            raise UserError(f"sae.start_from={options.start_from}: {error}") from error
    return sae


def _normalising_scale(activation: TypicalActivation) -> float:
    """Return the constant by which the activation's mean norm becomes √d.

    Raises:
        UserError: if there is none, because the activation is zero, or as good as zero, or not finite.
    """
    scale = math.sqrt(len(activation.mean)) / activation.norm if activation.norm > 0 else 0.0
    if not 0 < scale < 1e30:
        raise UserError(
            f"sae.normalize_activations=true: the mean norm of the activation is {activation.norm:g}, so it cannot be scaled to √d; "
            "choose another hook point, or sae.normalize_activations=false"
        )
    return scale


def build_loss(options: LossOptions) -> Loss[Any]:
    """Return the loss that the options name, which may be a user's class."""
    return find_class(options._target_, key="loss._target_", base=Loss)(options)


def build_label_gradients(
    options: SaeOptions, sites: Sequence[tuple[str, str]], subject: Subject
) -> LabelGradients | None:
    """Return the gradients that the architecture's encoder uses, or None if it uses none."""
    if options.gradient_labels is None:
        return None
    return LabelGradients(subject, tuple(write for _, write in sites), options.gradient_labels)


def build_module(config: SaeJob, *, subject: Subject, sites: Sequence[Site], later: Sequence[str]) -> SAEModule:
    """Return the module that trains the SAEs of a job on a language model.

    Args:
        later: later hook points whose activations the loss compares.
    """
    loss = build_loss(config.loss)
    passes: Passes = ActivationPasses(max_norm=config.loss.max_norm)
    if config.loss.token_share > 0:
        passes = TokenPasses(
            subject,
            loss=loss,
            sae_gradients=build_label_gradients(config.sae, config.sites, subject),
            later=later,
            separate=bool(config.per_sae()),
        )
    steering = Steering(config.target_l0, config.trainer.max_steps) if config.target_l0 is not None else None
    sparsity = Sparsity(config.sparsities or config.sparsity, n_saes=len(sites), steering=steering)
    return build_sae_module(config, sites, passes=passes, loss=loss, sparsity=sparsity, runs=tuple(config.per_sae()))


Module = TypeVar("Module", bound=SAEModule)


def build_sae_module(
    config: SparseTraining,
    sites: Sequence[Site],
    *,
    passes: Passes,
    loss: Loss[Any],
    sparsity: Sparsity,
    runs: Sequence[str],
    kind: type[Module] = SAEModule,
) -> Module:
    """Return the module that trains these SAEs with any loss on any network; `kind` may be a subclass of `SAEModule`."""
    return kind(
        sites,
        passes=passes,
        loss=loss,
        sparsity=sparsity,
        optimizer=config.optimizer,
        auxk=config.sae.auxk,
        max_steps=config.trainer.max_steps,
        log_every=config.trainer.log_every,
        seed=config.seed,
        runs=runs,
    )


def training_data(config: SaeJob, *, subject: Subject, tokens: Tokens) -> Sequence[Any]:
    """Return the training batches of the loss: shuffled activations, token batches, or the former followed by the latter."""
    steps, accumulate, token_share = config.trainer.max_steps, config.trainer.accumulate, config.loss.token_share
    n_shuffled = round((1 - token_share) * steps) * accumulate

    def make_batches(n_batches: int) -> Batches:
        context, batch = config.model.context, config.trainer.batch
        return Batches(tokens.train, context=context, batch=batch, seed=config.seed, n_batches=n_batches)

    token_batches = make_batches(steps * accumulate)
    if n_shuffled == 0:
        return token_batches
    shuffled = ShuffledActivations(
        make_batches(n_shuffled),
        subject=subject,
        hooks=list(dict.fromkeys(hook for site in config.sites for hook in site)),
        gradients=build_label_gradients(config.sae, config.sites, subject),
        group=config.data.shuffle_batches,
        seed=config.seed,
        skip_positions=config.loss.skip_positions,
    )
    return ConcatenatedBatches(shuffled, token_batches) if n_shuffled < len(token_batches) else shuffled
