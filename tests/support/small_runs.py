"""Small random networks, SAEs and Lightning modules for the tests of training, and a function that trains them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from crux.config.schema import Accelerator, Adam, Optimizer, OptimizerName, Trainer
from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.label_gradients import LabelGradients
from crux.sae.losses.e2e import E2EDownstreamLoss, E2ELoss
from crux.sae.losses.fisher import FisherLoss
from crux.sae.losses.kl_finetune import KLFinetuneLoss
from crux.sae.losses.label import LabelTarget
from crux.sae.losses.local import LocalLoss
from crux.sae.losses.loss import Loss as LossFormula
from crux.sae.losses.options import E2E, E2EDownstream, Fisher, KLFinetune, Local
from crux.sae.training.activations import ShuffledActivations
from crux.sae.training.passes import ActivationPasses, TokenPasses
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity, Steering
from crux.subjects.hooks import later_residuals
from crux.subjects.subject import Subject
from crux.training.data import ConcatenatedBatches, Feed
from crux.training.devices import CPU, Hardware
from crux.training.fit import fit

Loss = Literal["local", "e2e", "e2e_ds", "fisher", "kl_finetune"]
LOSSES: list[Loss] = ["local", "e2e", "e2e_ds", "fisher", "kl_finetune"]
HOOK = "blocks.1.hook_resid_pre"
"""The hook point of SAEs for which a test needs no other: one block is before it, two are after it."""
NO_AUXK = Auxk(coefficient=0.0, k=None, dead_after=0)


def make_optimizer(
    *, name: str = "adam", lr: float = 3e-3, weight_decay: float = 0.0, warmup_steps: int = 2, clip: float = 10.0
) -> Optimizer:
    """Return the options of an optimiser, with a warm-up of two steps."""
    adam = Adam(lr, [0.9, 0.999], 1e-8, weight_decay, warmup_steps, min_lr_factor=0.1)
    return Optimizer(**vars(adam), name=OptimizerName(name), clip=clip)


OPTIMIZER = make_optimizer()


def make_gpt2(
    *, n_layers: int = 3, d_model: int = 16, n_heads: int = 2, d_vocab: int = 64, n_ctx: int = 32, seed: int = 0
) -> Subject:
    """Return a random GPT-2 with weights large enough that its output depends on its input."""
    settings: dict[str, Any] = {
        "vocab_size": d_vocab, "n_positions": n_ctx, "n_embd": d_model, "n_layer": n_layers, "n_head": n_heads,
        "bos_token_id": 0, "eos_token_id": 0, "use_cache": False, "activation_function": "gelu_pytorch_tanh",
        "attn_implementation": "sdpa",
    }  # fmt: skip
    model = GPT2LMHeadModel(GPT2Config(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        parameter.data = mean + 0.2 * torch.randn(parameter.shape, generator=generator)
    return Subject(model, name="random", process_weights=False)


def make_sae(subject: Subject, *, n_latents: int = 32, seed: int = 0) -> ReluSAE:
    """Return a ReLU SAE of which half of the latents fire at first."""
    generator = torch.Generator().manual_seed(seed)
    return ReluSAE(
        d_model=subject.d_model, n_latents=n_latents, init="paper", init_norm=1.0, subtract_b_dec=False,
        generator=generator,
    )  # fmt: skip


def draw_token_batches(subject: Subject, *, n: int, batch: int = 2, pos: int = 12, seed: int = 0) -> list[Tensor]:
    """Draw n batches of random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, subject.d_vocab, (batch, pos), generator=generator) for _ in range(n)]


def make_label_gradients(
    subject: Subject, sites: Sequence[Site], target: LabelTarget = "data"
) -> LabelGradients | None:
    """Return the label gradients that gradient SAEs need; None if no SAE is one."""
    uses_gradients = any(isinstance(site.sae, GradientTopKSAE) for site in sites)
    return LabelGradients(subject, tuple(site.write for site in sites), target) if uses_gradients else None


def make_loss(loss: Loss, *, skip_positions: Sequence[int] = (), max_norm: float | None = None) -> LossFormula[Any]:
    """Return a loss with the coefficients that the tests use."""
    shared: Any = {"name": loss, "skip_positions": list(skip_positions), "max_norm": max_norm}
    match loss:
        case "local":
            return LocalLoss(Local(reconstruction=1.0, **shared))
        case "e2e":
            return E2ELoss(E2E(kl=1.0, reconstruction=0.0, **shared))
        case "e2e_ds":
            return E2EDownstreamLoss(E2EDownstream(kl=1.0, reconstruction=0.0, downstream=2.0, **shared))
        case "fisher":
            return FisherLoss(Fisher(reconstruction=1.0, fisher=1.0, block_diagonal=False, **shared))
        case "kl_finetune":
            return KLFinetuneLoss(KLFinetune(reconstruction=1.0, finetune_share=0.5, **shared))


def make_loss_module(
    loss: LossFormula[Any],
    sites: Sequence[Site],
    *,
    subject: Subject | None = None,
    later: Sequence[str] = (),
    sae_gradients: LabelGradients | None = None,
    optimizer: Optimizer = OPTIMIZER,
    sparsity: float | Sequence[float] = 0.5,
    steering: Steering | None = None,
    auxk: Auxk = NO_AUXK,
    max_steps: int = 6,
    log_every: int = 1,
    runs: Sequence[str] = (),
) -> SAEModule:
    """Return the Lightning module of SAEs under a loss; without a subject it trains on activations."""
    passes = ActivationPasses(max_norm=loss.options.max_norm)
    if subject is not None:
        passes = TokenPasses(subject, loss=loss, sae_gradients=sae_gradients, later=later, separate=len(runs) > 0)
    return SAEModule(
        sites,
        passes=passes,
        loss=loss,
        sparsity=Sparsity(sparsity, n_saes=len(sites), steering=steering),
        optimizer=optimizer,
        auxk=auxk,
        max_steps=max_steps,
        log_every=log_every,
        seed=0,
        runs=runs,
    )


def make_module(
    loss: Loss,
    subject: Subject,
    *,
    sae: SAE | None = None,
    sites: Sequence[Site] | None = None,
    skip_positions: Sequence[int] = (),
    max_norm: float | None = None,
    hook: str = HOOK,
    target: LabelTarget = "data",
    **training: Any,
) -> SAEModule:
    """Return the Lightning module of the given sites, or of one SAE at `hook`; `training` as in `make_loss_module`."""
    sites = sites or [Site(hook, hook, make_sae(subject) if sae is None else sae)]
    formula = make_loss(loss, skip_positions=skip_positions, max_norm=max_norm)
    if loss == "local":
        return make_loss_module(formula, sites, **training)
    written = [site.write for site in sites]
    available = [h for h in later_residuals(written[0], n_layers=subject.n_layers) if h not in written]
    return make_loss_module(
        formula,
        sites,
        subject=subject,
        later=formula.options.later_hooks(available, written=written[0]),
        sae_gradients=make_label_gradients(subject, sites, target),
        **training,
    )


def make_training_batches(
    loss: Loss,
    subject: Subject,
    tokens: Sequence[Tensor],
    *,
    group: int = 4,
    sites: Sequence[Site] | None = None,
    target: LabelTarget = "data",
) -> Sequence[Any]:
    """Return the training data of a loss: token batches, shuffled activations (over `group` batches), or half of each."""
    if loss not in ("local", "kl_finetune"):
        return tokens
    sites = sites or [Site(HOOK, HOOK, make_sae(subject))]
    shuffled = ShuffledActivations(
        tokens if loss == "local" else tokens[: len(tokens) // 2],
        subject=subject,
        hooks=list(dict.fromkeys(hook for site in sites for hook in (site.read, site.write))),
        gradients=make_label_gradients(subject, sites, target),
        group=group,
        seed=3,
        skip_positions=(),
    )
    return shuffled if loss == "local" else ConcatenatedBatches(shuffled, tokens)


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
    hardware: Hardware = CPU,
) -> float | None:
    """Train a module with `fit`, without short evaluations; return the training tokens per second."""
    trainer = Trainer(
        progress=False, accelerator=Accelerator.cpu, max_steps=module.max_steps, log_every=module.log_every,
        checkpoint_every=checkpoint_every,
    )  # fmt: skip
    return fit(
        module, Feed(batches, accumulate=accumulate), trainer=trainer, hardware=hardware._replace(devices=devices), items_per_step=24,
        unit="tokens", checkpoints=checkpoints, resume=resume, sinks=list(sinks), evaluations=None, bar_labels={}, callbacks=[],
        on_abandon=None,
    )  # fmt: skip
