"""From the configuration to objects: subject, text, SAE, module, schedule."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from hydra.utils import get_class

from crux.config.errors import UserError
from crux.config.schema import Config, Precision, Strategy
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.checks import check_shares, model_source
from crux.sae.evaluation.mean import Typical
from crux.sae.formats import saelens
from crux.sae.label_gradients import LabelGradients
from crux.sae.losses.loss import Loss
from crux.sae.losses.options import E2E, E2EDownstream, Fisher, KLFinetune, Local, LossOptions
from crux.sae.many import alone
from crux.sae.sites import places
from crux.sae.training.activations import ShuffledActivations
from crux.sae.training.passes import ActivationPasses, Passes, TokenPasses
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity, Steering
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.text.batches import Batches
from crux.text.packaged import SOURCES
from crux.text.sources import Files, Hub, Packaged, Source
from crux.text.token_file import default_cache
from crux.text.tokens import Tokens, prepare_tokens
from crux.training import follower
from crux.training.data import Joined
from crux.training.fit import Pace


def text_source(config: Config) -> Source:
    """Where the text comes from."""
    data = config.data
    if data.path is not None:
        return Files(Path(data.path), data.column)
    if data.name is not None:
        return Hub(data.name, data.config, data.split, data.revision, data.column)
    return Packaged(SOURCES)


def text_name(config: Config) -> str:
    """What to call the text."""
    return config.data.path or config.data.name or "packaged"


def load_tokens(config: Config) -> Tokens:
    """The subject's tokens of the text, from the cache where they are there."""
    tokenizer, end_of_text = load_tokenizer(model_source(config))
    return prepare_tokens(
        text_source(config),
        tokenizer=tokenizer,
        eot=end_of_text,
        max_tokens=config.data.max_tokens,
        held_out_tokens=config.data.held_out_tokens,
        min_tokens=2 * config.model.context,
        cache=Path(config.cache) if config.cache is not None else default_cache(),
        progress=config.trainer.progress,
    )


def device_of(config: Config) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`; of several, this process's."""
    wanted = config.trainer.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=cuda: torch sees no CUDA device here; say trainer.accelerator=cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", follower.rank()) if config.trainer.strategy is Strategy.ddp else torch.device("cuda")


def n_devices(config: Config) -> int:
    """Over how many devices the run trains, a process each.

    Raises:
        UserError: where there are not so many, or the batch cannot be shared.
    """
    if config.trainer.strategy is Strategy.single:
        return 1
    wanted, on_cpu = config.trainer.devices, device_of(config).type == "cpu"
    gpus = torch.cuda.device_count()
    if wanted is None and on_cpu:
        raise UserError("trainer=ddp: torch sees no GPU here; on the CPU, say how many processes: trainer.devices=2")
    if wanted is not None and not on_cpu and wanted > gpus:
        raise UserError(f"trainer.devices={wanted}: torch sees {gpus} GPU{'s' if gpus > 1 else ''} here")
    n = wanted if wanted is not None else gpus
    check_shares(config, n)
    return n


def training_dtype(config: Config) -> torch.dtype:
    """float32 on the CPU and bfloat16 on CUDA unless told otherwise."""
    match config.trainer.precision:
        case Precision.auto:
            return torch.bfloat16 if device_of(config).type == "cuda" else torch.float32
        case Precision.bfloat16:
            return torch.bfloat16
        case Precision.float32:
            return torch.float32


def load(config: Config, dtype: torch.dtype) -> Subject:
    """The frozen network."""
    return load_subject(
        model_source(config), process_weights=config.model.process_weights, device=device_of(config), dtype=dtype
    )


def training_batches(config: Config, tokens: Tokens, n_batches: int) -> Batches:
    """The run's first micro-batches."""
    return Batches(
        tokens.train,
        context=config.model.context,
        batch=config.trainer.batch,
        seed=config.seed,
        n_batches=n_batches,
    )


def build_sites(config: Config, typical: Mapping[str, Typical]) -> list[Site]:
    """A fresh SAE at each hook point, or the saved one to go on from; the seed fixes the weights."""
    return [
        Site(read, write, build_sae(config, read=typical[read], written=typical[write]))
        for read, write in places(config)
    ]


def build_sae(config: Config, *, read: Typical, written: Typical) -> SAE:
    """A fresh SAE for activations like these, or the saved one to go on from."""
    options = config.sae
    d_model, d_out = read.mean.shape[0], written.mean.shape[0]
    transcodes = options.output_hook is not None
    architecture = get_class(options._target_)
    assert issubclass(architecture, SAE)
    accepted = {name for c in architecture.__mro__ for name in inspect.signature(c.__init__).parameters}
    own = {f.name: getattr(options, f.name) for f in fields(options) if f.name in accepted}
    sae = architecture(
        **own
        | {
            "d_model": d_model,
            "d_out": d_out,
            "n_latents": options.n_latents if options.n_latents is not None else int((options.ratio or 0) * d_model),
            "init": options.init.value,
            "subtract_b_dec": options.subtract_b_dec and not transcodes,
            "generator": torch.Generator().manual_seed(config.seed),
        }
    )
    saelens.check(sae, transcodes=transcodes)
    scales = [math.sqrt(len(t.mean)) / t.norm if options.normalize_activations else 1.0 for t in (read, written)]
    mean = written.mean.cpu() if options.bias_at_mean else sae.b_dec.detach() / scales[1]
    sae.start_at(mean, input_scale=scales[0], output_scale=scales[1])
    if options.start_from is not None:
        saved, _ = saelens.load(Path(options.start_from))
        try:
            sae.start_from(saved)
        except UserError as error:
            raise UserError(f"sae.start_from={options.start_from}: {error}") from error
    return sae


def loss_options(config: Config) -> LossOptions:
    """Return the options of the configured loss."""
    kinds = {"local": Local, "e2e": E2E, "e2e_ds": E2EDownstream, "fisher": Fisher, "kl_finetune": KLFinetune}
    kind = kinds[config.loss.name]
    return kind(**{field.name: getattr(config.loss, field.name) for field in fields(kind)})


def build_loss(options: LossOptions) -> Loss[LossOptions]:
    """Return the loss that its options name, which may be a user's own."""
    kind = get_class(options._target_)
    assert issubclass(kind, Loss)
    return kind(options)


def gradients(config: Config, subject: Subject) -> LabelGradients | None:
    """Return the gradient that the architecture looks at, or None if it looks at none."""
    if config.sae.beta is None:
        return None
    return LabelGradients(subject, tuple(write for _, write in places(config)), config.gradient.target.value)


def build_module(
    config: Config, *, subject: Subject, sites: Sequence[Site], downstream_hooks: Sequence[str]
) -> SAEModule:
    """Return the module that trains a job's SAEs on a language model."""
    loss = build_loss(loss_options(config))
    passes = ActivationPasses(max_norm=loss.options.max_norm)
    if loss.options.token_share > 0:
        shown, separate = gradients(config, subject), len(alone(config)) > 0
        passes = TokenPasses(subject, loss=loss, shown=shown, later=downstream_hooks, separate=separate)
    return sae_module(config, sites, passes=passes, loss=loss)


Module = TypeVar("Module", bound=SAEModule)


def sae_module(
    config: Config, sites: Sequence[Site], *, passes: Passes, loss: Loss[Any], kind: type[Module] = SAEModule
) -> Module:
    """Return the module that trains these SAEs under any loss, on any network; `kind` may be a subclass."""
    steps = config.trainer.max_steps
    steering = Steering(config.target_l0, steps) if config.target_l0 is not None else None
    return kind(
        sites,
        passes=passes,
        loss=loss,
        sparsity=Sparsity(config.sparsities or config.sparsity, n_saes=len(sites), steering=steering),
        optimizer=config.optimizer,
        auxk=config.sae.auxk,
        max_steps=steps,
        log_every=config.trainer.log_every,
        seed=config.seed,
        runs=tuple(alone(config)),
    )


def training_data(config: Config, *, subject: Subject, tokens: Tokens) -> Sequence[Any]:
    """Return the batches that the loss trains on: shuffled activations, token batches, or first these, then those."""
    steps, accumulate, share = config.trainer.max_steps, config.trainer.accumulate, loss_options(config).token_share
    n_shuffled = round((1 - share) * steps) * accumulate
    token_batches = training_batches(config, tokens, steps * accumulate)
    if n_shuffled == 0:
        return token_batches
    shuffled = ShuffledActivations(
        training_batches(config, tokens, n_shuffled),
        subject=subject,
        hooks=list(dict.fromkeys(hook for place in places(config) for hook in place)),
        gradients=gradients(config, subject),
        group=config.data.shuffle_batches,
        seed=config.seed,
        skip_positions=config.loss.skip_positions,
    )
    return Joined(shuffled, token_batches) if n_shuffled < len(token_batches) else shuffled


def pace(config: Config) -> Pace:
    """How long, and how often what."""
    trainer = config.trainer
    return Pace(
        max_steps=trainer.max_steps,
        accumulate=trainer.accumulate,
        tokens_per_step=trainer.batch * trainer.accumulate * config.model.context,
        unit="tokens",
        checkpoint_every=trainer.checkpoint_every,
        val_every=trainer.val_every,
        accelerator=device_of(config).type,
        devices=n_devices(config),
        precision="bf16-mixed" if training_dtype(config) is torch.bfloat16 else "32-true",
        progress=trainer.progress,
    )
