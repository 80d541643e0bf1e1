"""A perceptron of two hidden modules: one computes a concept, the other a shortcut that agrees with most training labels.

The input is a rotation of four numbers for the concept and four for the shortcut. The concept is the sign of z₀z₁ + z₂z₃, and the
shortcut the sign of z₄z₅ + z₆z₇. Training labels equal the concept except in one of seven samples, and agree with the shortcut in nine of
ten samples. A network that maximises its training accuracy therefore follows the shortcut whenever the two disagree.

During training the weights are block-diagonal, with one block per module. Afterwards the neurons are permuted, and the input and the scores
are rotated; the next weights compensate for both. The function of the network stays the same, but no coordinate of the input or of the
scores belongs to a single module.
"""

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crux.degeneracy.experiments.fitting import fit_by_adam
from crux.degeneracy.networks.chain import Chain
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun

INPUTS_PER_MODULE = 4
NEURONS_PER_MODULE = 10
"""In each of the two hidden layers."""
SCORES_PER_MODULE = 2
"""The weighted sum of all scores is the logit."""
LABEL_NOISE = 1 / 7
"""Share of the training labels that differ from the concept."""
SHORTCUT_AGREEMENT = 0.9
"""Share of the training labels that agree with the shortcut."""
STEPS, BATCH = 2500, 512
HOOKS = ("input", "post0", "post1", "scores")
"""Hook points of the interaction graph's layers. The logit follows after them."""
LOGIT = "logit"


class Shortcut(NamedTuple):
    """The network, with the true subspaces of its modules."""

    chain: Chain
    rotation: Float[Tensor, "n n"]
    """x = z @ rotation, where the first half of z belongs to the concept and the second half to the shortcut."""
    subspaces: dict[str, Float[Tensor, "module d k"]]
    """For each hook point, k orthonormal directions of module 0 (the concept) and of module 1 (the shortcut)."""


class ShortcutSamples(NamedTuple):
    """Inputs with the true values of concept and shortcut."""

    x: Float[Tensor, "n d"]
    concept: Bool[Tensor, "n"]
    shortcut: Bool[Tensor, "n"]


def module_sign(z: Float[Tensor, "*n part"]) -> Bool[Tensor, "*n"]:
    """Return True if z₀z₁ + z₂z₃, which a module computes from its four numbers, is positive."""
    return z[..., 0] * z[..., 1] + z[..., 2] * z[..., 3] > 0


def draw_training_samples(n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"]]:
    """Draw z and labels for training.

    The signs of z₄ and z₆ are flipped if needed, so that the shortcut agrees with the label in the drawn samples and only there.
    """
    z = torch.randn(n, 2 * INPUTS_PER_MODULE, dtype=torch.float64, generator=generator)
    label = module_sign(z[:, :INPUTS_PER_MODULE]) ^ (torch.rand(n, generator=generator) < LABEL_NOISE)
    should_agree = torch.rand(n, generator=generator) < SHORTCUT_AGREEMENT
    agrees = module_sign(z[:, INPUTS_PER_MODULE:]) == label
    sign = torch.where(agrees == should_agree, 1.0, -1.0).double()
    z[:, [INPUTS_PER_MODULE, INPUTS_PER_MODULE + 2]] *= sign[:, None]  # z₄z₅ + z₆z₇ changes its sign
    return z, label


def draw_independent_samples(n: int, rotation: Float[Tensor, "d d"], generator: torch.Generator) -> ShortcutSamples:
    """Draw n times the concept's four numbers and n times the shortcut's, and return all n² combinations.

    In these samples the covariance between the two groups of numbers is exactly zero.
    """
    parts = torch.randn(2, n, INPUTS_PER_MODULE, dtype=torch.float64, generator=generator)
    z = torch.cat([parts[0].repeat_interleave(n, 0), parts[1].repeat(n, 1)], 1)
    return ShortcutSamples(z @ rotation, module_sign(z[:, :INPUTS_PER_MODULE]), module_sign(z[:, INPUTS_PER_MODULE:]))


def build_block_mask(n_out: int, n_in: int) -> Float[Tensor, "out in"]:
    """Return a mask of a weight matrix that is 1 within each of the two modules and 0 between them."""
    return torch.block_diag(*[torch.ones(n_out, n_in, dtype=torch.float64)] * 2)


def train_shortcut(generator: torch.Generator, run: ActiveRun) -> Shortcut:
    """Train the two modules by Adam on new samples in every step, and then hide them."""
    widths = [INPUTS_PER_MODULE, NEURONS_PER_MODULE, NEURONS_PER_MODULE, SCORES_PER_MODULE]
    masks = [build_block_mask(b, a) for a, b in itertools.pairwise(widths)]
    logit_weights = torch.ones(2 * SCORES_PER_MODULE, dtype=torch.float64) * torch.tensor(
        [1.0, -1.0] * SCORES_PER_MODULE
    )

    def train() -> dict[str, Tensor]:
        W = [
            (torch.randn(m.shape, dtype=torch.float64, generator=generator) * (4 / m.shape[1]) ** 0.5).requires_grad_()
            for m in masks
        ]
        b = [torch.zeros(len(m), dtype=torch.float64, requires_grad=True) for m in masks]

        def loss() -> Tensor:
            h, label = draw_training_samples(BATCH, generator)
            for i, mask in enumerate(masks):
                h = F.linear(h if i == 0 else h.relu(), W[i] * mask, b[i])
            return F.binary_cross_entropy_with_logits(h @ logit_weights, label.double())

        fit_by_adam(loss, [*W, *b], lr=1e-2, steps=STEPS, run=run)
        tensors = {f"W{i}": (w * m).detach() for i, (w, m) in enumerate(zip(W, masks, strict=True))}
        return tensors | {f"b{i}": v.detach() for i, v in enumerate(b)} | {"generator": generator.get_state()}

    saved = compute_once(run.folder, "network", train)
    generator.set_state(saved["generator"])  # the same state whether trained now or loaded
    W, b = ([saved[f"{name}{i}"] for i in range(len(masks))] for name in "Wb")
    return hide_modules(W, b, logit_weights, generator)


def hide_modules(
    W: list[Tensor], b: list[Tensor], logit_weights: Float[Tensor, "scores"], generator: torch.Generator
) -> Shortcut:
    """Return the network with permuted neurons and rotated input and scores."""

    def random_rotation(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q

    n_neurons = 2 * NEURONS_PER_MODULE
    # one per layer; the first half of its rows spans the concept's subspace
    orthogonal_maps = [random_rotation(2 * INPUTS_PER_MODULE)]
    orthogonal_maps += [
        torch.eye(n_neurons, dtype=torch.float64)[torch.randperm(n_neurons, generator=generator)] for _ in W[1:]
    ]
    orthogonal_maps.append(random_rotation(2 * SCORES_PER_MODULE))
    linears = []
    for i, (weight, bias) in enumerate(zip(W, b, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(orthogonal_maps[i + 1].T @ weight @ orthogonal_maps[i])
            linear.bias.copy_(bias @ orthogonal_maps[i + 1])
        linears.append(linear)
    logit = nn.Linear(2 * SCORES_PER_MODULE, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        logit.weight.copy_((logit_weights @ orthogonal_maps[-1])[None])
    stages = [nn.Identity(), *(nn.Sequential(linear, nn.ReLU()) for linear in linears[:-1]), linears[-1]]
    chain = Chain({**dict(zip(HOOKS, stages, strict=True)), LOGIT: logit}).requires_grad_(False)
    subspaces = {
        hook: orthogonal_map.unflatten(0, (2, -1)).mT
        for hook, orthogonal_map in zip(HOOKS, orthogonal_maps, strict=True)
    }
    return Shortcut(chain, orthogonal_maps[0], subspaces)
