"""What the training tests share: small random networks, SAEs, modules and one short call of `fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from crux.saes.relu import ReluSAE
from crux.subjects.hooks import later_residuals
from crux.subjects.subject import Subject
from crux.training.data import Feed, ShuffledActivations
from crux.training.end_to_end import Coefficients, EndToEndSAE
from crux.training.fit import Pace, fit
from crux.training.local import LocalSAE
from crux.training.sae_module import Recipe, SAEModule

Loss = Literal["local", "e2e", "e2e_ds"]
LOSSES: list[Loss] = ["local", "e2e", "e2e_ds"]
HOOK = "blocks.1.hook_resid_pre"
RECIPE = Recipe(
    optimizer="adam", lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=2, min_lr_factor=0.1,
    clip=10.0, max_steps=6, log_every=1,
)  # fmt: skip


def gpt2(
    *, n_layers: int = 3, d_model: int = 16, n_heads: int = 2, d_vocab: int = 64, n_ctx: int = 32, seed: int = 0
) -> Subject:
    """A random GPT-2, its weights wide enough that what it computes depends on its input."""
    config = GPT2Config(
        vocab_size=d_vocab, n_positions=n_ctx, n_embd=d_model, n_layer=n_layers, n_head=n_heads, bos_token_id=0,
        eos_token_id=0, use_cache=False, activation_function="gelu_pytorch_tanh", attn_implementation="sdpa",
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        around = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.data = around + 0.2 * torch.randn(parameter.shape, generator=generator)
    return Subject(model, name="random", process_weights=False)


def sae_for(subject: Subject, *, n_latents: int = 32, seed: int = 0) -> ReluSAE:
    """Half of its latents fire at first."""
    generator = torch.Generator().manual_seed(seed)
    return ReluSAE(d_model=subject.d_model, n_latents=n_latents, init="paper", init_norm=1.0, generator=generator)


def token_batches(subject: Subject, *, n: int, batch: int = 2, pos: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, subject.d_vocab, (batch, pos), generator=generator) for _ in range(n)]


def module_for(
    loss: Loss,
    subject: Subject,
    *,
    recipe: Recipe = RECIPE,
    sparsity: float = 0.5,
    sae: ReluSAE | None = None,
    skip_positions: Sequence[int] = (),
    max_norm: float | None = None,
    hook: str = HOOK,
) -> SAEModule:
    sae = sae_for(subject) if sae is None else sae
    if loss == "local":
        return LocalSAE(sae, recipe=recipe, sparsity=sparsity, reconstruction=1.0, max_norm=max_norm)
    later = later_residuals(hook, n_layers=subject.n_layers)
    return EndToEndSAE(
        sae,
        subject=subject,
        hook=hook,
        downstream_hooks=later if loss == "e2e_ds" else [],
        coefficients=Coefficients(reconstruction=0.0, kl=1.0, downstream=2.0 if loss == "e2e_ds" else 0.0),
        recipe=recipe,
        sparsity=sparsity,
        skip_positions=skip_positions,
        max_norm=max_norm,
    )


def source_for(loss: Loss, subject: Subject, tokens: Sequence[Tensor], *, group: int = 4) -> Sequence[Tensor]:
    """What the loss trains on: the token batches, or activations shuffled over `group` of them."""
    if loss != "local":
        return tokens
    return ShuffledActivations(tokens, subject=subject, hook=HOOK, group=group, seed=3, skip_positions=())


def run_fit(
    module: SAEModule,
    batches: Sequence[Tensor],
    *,
    checkpoints: Path,
    sinks: Sequence[Any] = (),
    accumulate: int = 1,
    checkpoint_every: int = 1000,
    resume: Path | None = None,
) -> float:
    pace = Pace(
        max_steps=module.recipe.max_steps,
        accumulate=accumulate,
        tokens_per_step=24,
        checkpoint_every=checkpoint_every,
        val_every=0,
        accelerator="cpu",
        precision="32-true",
        progress=False,
    )
    feed = Feed(batches, accumulate=accumulate)
    return fit(module, feed, pace=pace, checkpoints=checkpoints, resume=resume, sinks=list(sinks), judge=None, shown={})
