"""Keys of experiments with learning coefficients, degeneracy and the interaction basis: a part of schema.py, whose rules hold here too."""

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


class DegeneracyExperiment(Enum):
    """Measures of degeneracy: src/crux/experiments/degeneracy."""

    spectra = "spectra"
    synchronised = "synchronised"


class Network(Enum):
    """What degeneracy is measured in: the subject (model, model.path), or a ReLU perceptron that the experiment trains on digits."""

    model = "model"
    mlp = "mlp"


@dataclass
class Degeneracy:
    """What of a network does nothing: dependent activations, dependent Jacobians, synchronised neurons."""

    experiment: DegeneracyExperiment = MISSING
    network: Network = MISSING
    thresholds: list[float] = MISSING
    """Spectra: shares of the largest eigenvalue from which on a direction counts. Synchronised: distances at which blocks are cut."""
    sequences: int = MISSING
    """Sequences of text that a language model is looked at on."""
    hidden: list[int] = MISSING
    """Widths of the perceptron's hidden layers."""
    steps: int = MISSING
    """Full-batch steps of AdamW that the perceptron is trained with."""


class BasisExperiment(Enum):
    """Networks whose interaction basis is found: src/crux/experiments/interaction_basis."""

    mlp = "mlp"
    modular_addition = "modular_addition"
    modular_addition_training = "modular_addition_training"
    tiny = "tiny"
    gpt2 = "gpt2"
    modules = "modules"
    dictionaries = "dictionaries"


@dataclass
class Addition:
    """The transformer that adds two numbers mod p, and what it is trained on."""

    p: int = MISSING
    d_model: int = MISSING
    n_heads: int = MISSING
    d_mlp: int = MISSING
    train_share: float = MISSING
    """Share of the p² pairs that are trained on; the others are held out."""
    stop_when_right: bool = MISSING
    """End when every held-out pair is right, not at trainer.max_steps."""


BASES = ("neuron", "random", "pca", "local", "next", "global")
"""Coordinates that are found from a network and data alone."""


class LastBasis(Enum):
    """Coordinates at the last hook point: its principal components, its neurons, or, behind a language model's final norm, its logits'
    principal components."""

    pca = "pca"
    neuron = "neuron"
    logits = "logits"


@dataclass
class Compare:
    """Bases beside each other: neurons, a random rotation, principal components, local, next-k and global interaction basis."""

    bases: list[str] = MISSING
    """Of neuron, random, pca, local, next (by `ahead`), global; those of `saes` come by themselves."""
    hooks: list[str] = MISSING
    """Hook points, in the network's order; the last has one basis for all."""
    last: LastBasis = MISSING
    ahead: int | None = None
    """How many of the hook points the next-k basis looks ahead."""
    probes: int | None = None
    """Random signs a sample for the Jacobian Gram; null: exact, a backward pass for every position and direction."""
    threshold: float = MISSING
    """Directions with less than so much of the largest eigenvalue are left out."""
    points: int | None = None
    """Gauss–Legendre points of the edges' integral; null: the gradient at the activation itself."""
    samples: int = MISSING
    """Samples (language models: sequences) that bases and edges are found on."""
    judged: int = MISSING
    """Other samples, for the ablation; where they are fewer (held-out pairs), all."""
    batch: int = MISSING
    """Samples a pass."""
    length: int | None = None
    """Tokens a sequence; language models."""
    within: float = MISSING
    """What the loss may rise by when few directions or edges are kept, in the loss's unit."""
    directions: int | None = None
    """Edges are between the strongest so many directions of each basis; null: all."""
    edge_samples: int | None = None
    """Edges are found on the first so many of the samples; null: on all."""
    edge_ablation: list[str] = MISSING
    """Bases in which the edges that are needed are counted, too: a pass for every direction and count."""
    saes: list[str] | None = None
    """Folders of saved SAEs whose decoders stand beside the other bases, each at its hook point."""


@dataclass
class SmallPerceptron:
    """The perceptron that interaction_basis/mlp trains."""

    hidden: list[int] = MISSING
    """Widths of its hidden layers."""
    steps: int = MISSING
    lr: float = MISSING


@dataclass
class Modularity:
    """How modules are looked for in an interaction graph: Leiden (src/crux/degeneracy/modularity.py)."""

    resolution: float = MISSING
    """γ; more makes more and smaller modules."""
    iterations: int = MISSING
    """Cycles of a run, each beginning where the last ended."""
    starts: int = MISSING
    """Runs from scratch, of which the best is kept."""


@dataclass
class Dictionaries:
    """How a dictionary is compared with what the network reads."""

    left_out: float = MISSING
    """Share of Σ Λ that the directions may leave out which count as read."""
    tokens: int = MISSING
    """Held-out tokens on which saved SAEs and their basis are looked at."""


@dataclass
class InteractionBasis:
    """The basis in which a network's layers interact sparsely (Bushnaq et al. 2405.10928), and others beside it."""

    experiment: BasisExperiment = MISSING
    addition: Addition | None = None
    """The network that modular_addition trains where model.path does not name one."""
    compare: Compare | None = None
    perceptron: SmallPerceptron | None = None
    modularity: Modularity | None = None
    dictionaries: Dictionaries | None = None
    saes: list[str] | None = None
    """Folders of saved SAEs that dictionaries looks at; it trains its own where none are given."""
