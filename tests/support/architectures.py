"""The architectures that are tested for the properties that every SAE must have; a new one needs one more line here."""

from collections.abc import Callable

import torch
from torch import Tensor

from crux.sae.architectures.batch_topk import BatchTopKSAE
from crux.sae.architectures.codes import Codes
from crux.sae.architectures.gated import GatedSAE
from crux.sae.architectures.gradient_topk import GradientTopKSAE
from crux.sae.architectures.jumprelu import JumpReluSAE
from crux.sae.architectures.matryoshka import MatryoshkaSAE
from crux.sae.architectures.p_anneal import PAnnealSAE
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE, BaseArguments, Init
from crux.sae.architectures.topk import TopKSAE

ARCHITECTURES: dict[str, Callable[[BaseArguments], SAE]] = {
    "relu": lambda arguments: ReluSAE(**arguments),
    "topk": lambda arguments: TopKSAE(**arguments, k=4),
    "batch_topk": lambda arguments: BatchTopKSAE(**arguments, k=4),
    "jumprelu": lambda arguments: JumpReluSAE(**arguments, threshold=0.3, bandwidth=0.5, threshold_rate=10.0),
    "gated": lambda arguments: GatedSAE(**arguments),
    "matryoshka": lambda arguments: MatryoshkaSAE(**arguments, k=4, prefixes=(0.25, 0.5), prefix_coefficient=1.0),
    "p_anneal": lambda arguments: PAnnealSAE(**arguments, p_end=0.2, p_start=0.1, p_stop=1.0, p_updates=3),
    "gradient_topk": lambda arguments: GradientTopKSAE(**arguments, k=4, beta=2.0),
}


def make_arguments(
    *,
    d_model: int = 8,
    n_latents: int = 24,
    init: Init = "paper",
    init_norm: float = 0.1,
    subtract_b_dec: bool = False,
    d_out: int | None = None,
    seed: int = 0,
) -> BaseArguments:
    """Return the arguments that every architecture has, for an SAE with 24 latents on 8 dimensions."""
    return {
        "d_model": d_model,
        "n_latents": n_latents,
        "init": init,
        "init_norm": init_norm,
        "subtract_b_dec": subtract_b_dec,
        "generator": torch.Generator().manual_seed(seed),
        "d_out": d_out,
    }


def draw_normal(*shape: int, seed: int = 1) -> Tensor:
    """Draw independent standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturb_sae(sae: SAE) -> SAE:
    """Perturb every parameter of an SAE, and update its running means with three batches, as in training; return the SAE."""
    with torch.no_grad():
        for i, parameter in enumerate(sae.parameters()):
            parameter.add_(0.3 * draw_normal(*parameter.shape, seed=100 + i))
    for seed in (7, 8, 9):
        x = 3 * draw_normal(40, sae.d_model, seed=seed)
        gradient = draw_normal(40, sae.d_out, seed=seed + 10)  # only gradient SAEs use it
        sae.observe(sae.encode(x, gradient))
    return sae


def compute_auxiliary(sae: SAE, codes: Codes, target: Tensor, *, weight: Tensor | None) -> Tensor:
    """Return the architecture's own loss term, or zero if it has none."""
    term = sae.auxiliary(codes, target, weight=weight)
    return target.new_zeros(()) if term is None else term
