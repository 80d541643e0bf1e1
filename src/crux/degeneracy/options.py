"""Options of the experiments on degeneracy and the interaction basis. Torch-free."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


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


OPTIONS: dict[str, dict[str, type]] = {}
