"""Options of the experiments with local learning coefficients. Torch-free."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class LlcExperiment(Enum):
    """Experiments with learning coefficients: src/crux/experiments/llc."""

    calibrate = "calibrate"
    speed = "speed"
    kgon = "kgon"
    linear = "linear"
    behavioural = "behavioural"
    toy_training = "toy_training"
    sae_training = "sae_training"
    language_model = "language_model"


class Calibration(Enum):
    """Losses whose learning coefficients are known: src/crux/llc/calibration.py, src/crux/llc/experiments/kgons.py."""

    regular = "regular"
    monomials = "monomials"
    linear_networks = "linear_networks"
    kgons = "kgons"
    escape = "escape"


class SamplerName(Enum):
    """How chains move: src/crux/degeneracy/samplers."""

    sgld = "sgld"
    rmsprop_sgld = "rmsprop_sgld"
    mala = "mala"
    hmc = "hmc"


class Behaviour(Enum):
    """How outputs are compared in a behavioural loss: squared distance, or KL of the distributions of which they are logits."""

    mse = "mse"
    kl = "kl"


class Split(Enum):
    """A part of the text."""

    train = "train"
    held_out = "held_out"


@dataclass
class Llc:
    """Local learning coefficients. Each experiment reads some of the keys and refuses the others: src/crux/llc/checks.py."""

    experiment: LlcExperiment = MISSING
    cases: list[Calibration] | None = None
    """What is calibrated on."""
    length: float | None = None
    """Draws of every chain are so many times as many as the cases say; burn-in stays."""
    sampler: SamplerName | None = None
    leapfrogs: int | None = None
    """Steps of a move of sampler=hmc."""
    whitened: bool | None = None
    """sampler=hmc and mala move in coordinates in which all directions are equally stiff at w*; then ε is of order 1. Up to 384
    parameters."""
    chains: int | None = None
    """Of each checkpoint and each nβ, all side by side."""
    burn_in: int | None = None
    """Steps of each chain that are discarded."""
    draws: int | None = None
    """Kept of each chain."""
    every: int | None = None
    """Steps from one draw to the next."""
    nbetas: list[float] | None = None
    """nβ of the posterior exp(−nβ L − γ/2 ‖w − w*‖²), one estimate each; n / log n at n samples."""
    gamma: float | None = None
    """γ, the pull to w*."""
    step_size: float | None = None
    """ε; where not given 0.1 / (nβ a_max + γ), a_max the largest curvature at w*, and 0.5 with sampler=mala or hmc."""
    corners: list[int] | None = None
    """Corners of the k-gons, 5 to 8."""
    plus: int | None = None
    """Features beside the corners that are alive in their bias alone."""
    features: int | None = None
    """All of a k-gon's features; those that are neither corners nor alive are dead. As few as can be where not given."""
    widths: list[list[int]] | None = None
    """Of each deep linear network, input first."""
    ranks: list[int] | None = None
    """Of the true map of each."""
    checkpoints: int | None = None
    """Of the training, up to so many: the first, the last, and between them ever farther apart."""
    samples: int | None = None
    """Data points of a loss that is a mean over data, sequences for a language model: fixed, the same for all chains."""
    behaviours: list[Behaviour] | None = None
    """Behavioural losses that are sampled."""
    hidden: list[int] | None = None
    """Widths of the hidden layers of the perceptron that is studied."""
    parameters: list[str] | None = None
    """Which parameters move, by name; * stands for anything."""
    minibatch: int | None = None
    """Sequences that each chain draws anew for every step; all of the fixed ones where not given."""
    gradient_text: Split | None = None
    """What the chains feel."""
    evaluation_text: Split | None = None
    """What L(w) and L(w*) are measured on."""


OPTIONS: dict[str, dict[str, type]] = {}
