"""A perceptron of two modules that nothing shows: one computes what it should, the other a shortcut that the training data offer.

The input is a rotation of four numbers for the concept and four for the shortcut. The concept is the sign of z₀z₁ + z₂z₃, the
shortcut that of z₄z₅ + z₆z₇. Training labels are the concept's but for one in seven, and agree with the shortcut in nine of ten
samples, so that a network that gets as many right as it can goes with the shortcut wherever the two disagree.

The modules' weights are blocks while it trains. Then neurons are permuted, and input and scores rotated, both made up for in the next
weights: the network stays what it was, and no coordinate of the input or of the scores belongs to one module.
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

PART = 4
"""Inputs of a module."""
NEURONS = 10
"""Of a module, in each of two hidden layers."""
SCORES = 2
"""Of a module: their weighted sum is the logit."""
NOISE, AGREES = 1 / 7, 0.9
"""Share of wrong labels; share of labels that the shortcut agrees with."""
STEPS, BATCH = 2500, 512
HOOKS = ("input", "post0", "post1", "scores")
"""Layers of the interaction graph; behind them stands the logit."""
LOGIT = "logit"


class Shortcut(NamedTuple):
    """The network and what is known of it."""

    chain: Chain
    rotation: Float[Tensor, "n n"]
    """x = z @ rotation."""
    subspaces: dict[str, Float[Tensor, "module d k"]]
    """By hook point, orthonormal directions of module 0, the concept's, and module 1, the shortcut's."""


class Samples(NamedTuple):
    """Inputs and what is true of them."""

    x: Float[Tensor, "n d"]
    concept: Bool[Tensor, "n"]
    shortcut: Bool[Tensor, "n"]


def sign(z: Float[Tensor, "*n part"]) -> Bool[Tensor, "*n"]:
    """Of a module's four numbers."""
    return z[..., 0] * z[..., 1] + z[..., 2] * z[..., 3] > 0


def training_samples(n: int, generator: torch.Generator) -> tuple[Float[Tensor, "n d"], Bool[Tensor, "n"]]:
    """z and labels. A shortcut on the wrong side is brought to the other one by two signs."""
    z = torch.randn(n, 2 * PART, dtype=torch.float64, generator=generator)
    label = sign(z[:, :PART]) ^ (torch.rand(n, generator=generator) < NOISE)
    agrees = torch.rand(n, generator=generator) < AGREES
    z[:, [PART, PART + 2]] *= torch.where((sign(z[:, PART:]) == label) == agrees, 1.0, -1.0).double()[:, None]
    return z, label


def unrelated(n: int, rotation: Float[Tensor, "d d"], generator: torch.Generator) -> Samples:
    """Every one of n concept parts with every one of n shortcut parts: the two do not covary, not even in the sample."""
    parts = torch.randn(2, n, PART, dtype=torch.float64, generator=generator)
    z = torch.cat([parts[0].repeat_interleave(n, 0), parts[1].repeat(n, 1)], 1)
    return Samples(z @ rotation, sign(z[:, :PART]), sign(z[:, PART:]))


def blocks(n_out: int, n_in: int) -> Float[Tensor, "out in"]:
    """1 within the two modules, 0 between."""
    return torch.block_diag(*[torch.ones(n_out, n_in, dtype=torch.float64)] * 2)


def train(generator: torch.Generator, run: ActiveRun) -> Shortcut:
    """Train the two modules on fresh samples in every step, by Adam with a cosine to zero; then hide them."""
    widths = [PART, NEURONS, NEURONS, SCORES]
    masks = [blocks(b, a) for a, b in itertools.pairwise(widths)]
    out = torch.ones(2 * SCORES, dtype=torch.float64) * torch.tensor([1.0, -1.0] * SCORES)

    def weights() -> dict[str, Tensor]:
        W = [
            (torch.randn(m.shape, dtype=torch.float64, generator=generator) * (4 / m.shape[1]) ** 0.5).requires_grad_()
            for m in masks
        ]
        b = [torch.zeros(len(m), dtype=torch.float64, requires_grad=True) for m in masks]

        def loss() -> Tensor:
            h, label = training_samples(BATCH, generator)
            for i, mask in enumerate(masks):
                h = F.linear(h if i == 0 else h.relu(), W[i] * mask, b[i])
            return F.binary_cross_entropy_with_logits(h @ out, label.double())

        fit_by_adam(loss, [*W, *b], lr=1e-2, steps=STEPS, run=run)
        found = {f"W{i}": (w * m).detach() for i, (w, m) in enumerate(zip(W, masks, strict=True))}
        return found | {f"b{i}": v.detach() for i, v in enumerate(b)} | {"generator": generator.get_state()}

    kept = compute_once(run.folder, "network", weights)
    generator.set_state(kept["generator"])
    W, b = ([kept[f"{name}{i}"] for i in range(len(masks))] for name in "Wb")
    return hidden(W, b, out, generator)


def hidden(W: list[Tensor], b: list[Tensor], out: Float[Tensor, "scores"], generator: torch.Generator) -> Shortcut:
    """The network with neurons permuted, input and scores rotated."""

    def rotated(n: int) -> Tensor:
        return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q

    n_neurons = 2 * NEURONS
    turns = [rotated(2 * PART)]  # a module's part of each layer: its rows of these
    turns += [torch.eye(n_neurons, dtype=torch.float64)[torch.randperm(n_neurons, generator=generator)] for _ in W[1:]]
    turns.append(rotated(2 * SCORES))
    linears = []
    for i, (w, v) in enumerate(zip(W, b, strict=True)):
        linear = nn.Linear(w.shape[1], w.shape[0], dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(turns[i + 1].T @ w @ turns[i])
            linear.bias.copy_(v @ turns[i + 1])
        linears.append(linear)
    logit = nn.Linear(2 * SCORES, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        logit.weight.copy_((out @ turns[-1])[None])
    stages = [nn.Identity(), *(nn.Sequential(linear, nn.ReLU()) for linear in linears[:-1]), linears[-1]]
    chain = Chain({**dict(zip(HOOKS, stages, strict=True)), LOGIT: logit}).requires_grad_(False)
    subspaces = {hook: turn.unflatten(0, (2, -1)).mT for hook, turn in zip(HOOKS, turns, strict=True)}
    return Shortcut(chain, turns[0], subspaces)
