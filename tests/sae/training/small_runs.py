"""What the training tests share: small random networks, SAEs, modules and one short call of `fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.losses.label import Target
from crux.sae.training.end_to_end import Coefficients, EndToEndSAE
from crux.sae.training.fisher import FisherCoefficients, FisherSAE
from crux.sae.training.gradients import LabelGradients
from crux.sae.training.kl_finetune import KLFinetunedSAE
from crux.sae.training.local import LocalSAE
from crux.sae.training.recipe import AuxK, Common, Recipe
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity, Steering
from crux.sae.training.token_module import TokenPasses
from crux.subjects.hooks import later_residuals
from crux.subjects.subject import Subject
from crux.training.data import Feed, Joined, ShuffledActivations
from crux.training.fit import Pace, fit

Loss = Literal["local", "e2e", "e2e_ds", "fisher", "kl_finetune"]
LOSSES: list[Loss] = ["local", "e2e", "e2e_ds", "fisher", "kl_finetune"]
HOOK = "blocks.1.hook_resid_pre"
RECIPE = Recipe(
    optimizer="adam", lr=3e-3, threshold_rate=10.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, warmup_steps=2, min_lr_factor=0.1,
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
    return ReluSAE(
        d_model=subject.d_model, n_latents=n_latents, init="paper", init_norm=1.0, subtract_b_dec=False,
        generator=generator,
    )  # fmt: skip


def token_batches(subject: Subject, *, n: int, batch: int = 2, pos: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, subject.d_vocab, (batch, pos), generator=generator) for _ in range(n)]


def common(
    *,
    recipe: Recipe = RECIPE,
    sparsity: float | Sequence[float] = 0.5,
    steering: Steering | None = None,
    auxk: AuxK | None = None,
    max_norm: float | None = None,
    n_saes: int = 1,
    runs: Sequence[str] = (),
) -> Common:
    return Common(
        recipe=recipe,
        sparsity=Sparsity(sparsity, n_saes=n_saes, steering=steering),
        auxk=auxk,
        max_norm=max_norm,
        seed=0,
        runs=tuple(runs),
    )


def gradients_for(subject: Subject, sites: Sequence[Site], target: Target = "data") -> LabelGradients | None:
    """What the SAEs look at besides activations: g-SAEs alone do."""
    looks = any(isinstance(site.sae, GradientTopKSAE) for site in sites)
    return LabelGradients(subject, tuple(site.write for site in sites), target) if looks else None


def module_for(
    loss: Loss,
    subject: Subject,
    *,
    recipe: Recipe = RECIPE,
    sparsity: float | Sequence[float] = 0.5,
    steering: Steering | None = None,
    auxk: AuxK | None = None,
    sae: SAE | None = None,
    sites: Sequence[Site] | None = None,
    skip_positions: Sequence[int] = (),
    max_norm: float | None = None,
    hook: str = HOOK,
    target: Target = "data",
    runs: Sequence[str] = (),
) -> SAEModule:
    """`sites` or one SAE at `hook`."""
    sites = sites or [Site(hook, hook, sae_for(subject) if sae is None else sae)]
    shared = common(
        recipe=recipe, sparsity=sparsity, steering=steering, auxk=auxk, max_norm=max_norm, n_saes=len(sites), runs=runs
    )
    if loss == "local":
        return LocalSAE(sites, reconstruction=1.0, **shared)
    passes = TokenPasses(subject, gradients_for(subject, sites, target), tuple(skip_positions))
    if loss == "fisher":
        return FisherSAE(sites, passes=passes, coefficients=FisherCoefficients(1.0, 1.0, False), **shared)
    written = [site.write for site in sites]
    later = [h for h in later_residuals(written[0], n_layers=subject.n_layers) if h not in written]
    finetunes = loss == "kl_finetune"
    return (KLFinetunedSAE if finetunes else EndToEndSAE)(
        sites,
        passes=passes,
        downstream_hooks=later if loss == "e2e_ds" else [],
        coefficients=Coefficients(
            reconstruction=1.0 if finetunes else 0.0,
            kl=0.0 if finetunes else 1.0,
            downstream=2.0 if loss == "e2e_ds" else 0.0,
        ),
        **shared,
    )


def source_for(
    loss: Loss,
    subject: Subject,
    tokens: Sequence[Tensor],
    *,
    group: int = 4,
    sites: Sequence[Site] | None = None,
    target: Target = "data",
) -> Sequence[Any]:
    """What the loss trains on: token batches, activations shuffled over `group` of them, or half of these, then those."""
    if loss not in ("local", "kl_finetune"):
        return tokens
    sites = sites or [Site(HOOK, HOOK, sae_for(subject))]
    shuffled = ShuffledActivations(
        tokens if loss == "local" else tokens[: len(tokens) // 2],
        subject=subject,
        hooks=list(dict.fromkeys(hook for site in sites for hook in (site.read, site.write))),
        gradients=gradients_for(subject, sites, target),
        group=group,
        seed=3,
        skip_positions=(),
    )
    return shuffled if loss == "local" else Joined(shuffled, tokens)


def run_fit(
    module: SAEModule,
    batches: Sequence[Any],
    *,
    checkpoints: Path,
    sinks: Sequence[Any] = (),
    accumulate: int = 1,
    checkpoint_every: int = 1000,
    resume: Path | None = None,
    devices: int = 1,
) -> float:
    pace = Pace(
        max_steps=module.recipe.max_steps,
        accumulate=accumulate,
        tokens_per_step=24,
        unit="tokens",
        checkpoint_every=checkpoint_every,
        val_every=0,
        accelerator="cpu",
        devices=devices,
        precision="32-true",
        progress=False,
    )
    feed = Feed(batches, accumulate=accumulate)
    return fit(
        module,
        feed,
        pace=pace,
        checkpoints=checkpoints,
        resume=resume,
        sinks=list(sinks),
        judge=None,
        shown={},
        abandoned=None,
    )
