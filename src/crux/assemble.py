"""From the configuration to objects: subject, text, SAE, module, schedule."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crux.checks import model_source
from crux.data.batches import Batches
from crux.data.packaged import SOURCES
from crux.data.sources import Files, Hub, Packaged, Source
from crux.data.token_file import default_cache
from crux.data.tokens import Tokens, prepare_tokens
from crux.evaluation.mean import Typical
from crux.saes.relu import ReluSAE
from crux.schema import Config, Precision
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject
from crux.subjects.tokenizer import load_tokenizer
from crux.training.data import ShuffledActivations
from crux.training.end_to_end import Coefficients, EndToEndSAE
from crux.training.fit import Pace
from crux.training.local import LocalSAE
from crux.training.sae_module import Recipe, SAEModule


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
    """The device of `auto`, `cpu` or `cuda`."""
    wanted = config.trainer.accelerator
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.accelerator=cuda: torch sees no CUDA device here; say trainer.accelerator=cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


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


def training_batches(config: Config, tokens: Tokens) -> Batches:
    """All micro-batches of the run."""
    return Batches(
        tokens.train,
        context=config.model.context,
        batch=config.trainer.batch,
        seed=config.seed,
        n_batches=config.trainer.max_steps * config.trainer.accumulate,
    )


def build_sae(config: Config, *, d_model: int, typical: Typical) -> ReluSAE:
    """A fresh SAE; the seed fixes its weights."""
    ratio = config.sae.ratio
    n_latents = config.sae.n_latents if config.sae.n_latents is not None else int((ratio or 0) * d_model)
    sae = ReluSAE(
        d_model=d_model,
        n_latents=n_latents,
        init=config.sae.init.value,
        init_norm=config.sae.init_norm,
        generator=torch.Generator().manual_seed(config.seed),
    )
    scale = math.sqrt(d_model) / typical.norm if config.sae.normalize_activations else 1.0
    sae.start_at(typical.mean.cpu() if config.sae.bias_at_mean else sae.b_dec / scale, input_scale=scale)
    return sae


def end_to_end(config: Config) -> bool:
    """Whether the loss looks behind the hook point."""
    return config.loss.kl > 0 or config.loss.downstream > 0


def build_module(config: Config, *, subject: Subject, sae: ReluSAE, downstream_hooks: list[str]) -> SAEModule:
    """The Lightning module of the loss."""
    optimizer = config.optimizer
    recipe = Recipe(
        optimizer=optimizer.name.value,
        lr=optimizer.lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        min_lr_factor=optimizer.min_lr_factor,
        clip=optimizer.clip,
        max_steps=config.trainer.max_steps,
        log_every=config.trainer.log_every,
    )
    loss = config.loss
    if not end_to_end(config):
        return LocalSAE(
            sae, recipe=recipe, sparsity=config.sparsity, reconstruction=loss.reconstruction, max_norm=loss.max_norm
        )
    return EndToEndSAE(
        sae,
        subject=subject,
        hook=config.hook_point,
        downstream_hooks=downstream_hooks,
        coefficients=Coefficients(loss.reconstruction, loss.kl, loss.downstream),
        recipe=recipe,
        sparsity=config.sparsity,
        skip_positions=loss.skip_positions,
        max_norm=loss.max_norm,
    )


def fed(config: Config, *, subject: Subject, batches: Batches) -> Sequence[Tensor]:
    """What the module of this loss trains on: token batches, or activations shuffled across sequences."""
    if end_to_end(config):
        return batches
    return ShuffledActivations(
        batches,
        subject=subject,
        hook=config.hook_point,
        group=config.data.shuffle_batches,
        seed=config.seed,
        skip_positions=config.loss.skip_positions,
    )


def pace(config: Config) -> Pace:
    """How long, and how often what."""
    trainer = config.trainer
    return Pace(
        max_steps=trainer.max_steps,
        accumulate=trainer.accumulate,
        tokens_per_step=trainer.batch * trainer.accumulate * config.model.context,
        checkpoint_every=trainer.checkpoint_every,
        val_every=trainer.val_every,
        accelerator=device_of(config).type,
        precision="bf16-mixed" if training_dtype(config) is torch.bfloat16 else "32-true",
        progress=trainer.progress,
    )
