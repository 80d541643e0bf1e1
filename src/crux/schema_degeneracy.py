"""Keys of experiments with learning coefficients, degeneracy and the interaction basis: a part of schema.py, whose rules hold here too."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class LlcExperiment(Enum):
    """Experiments with learning coefficients: src/crux/experiments/llc."""

    calibrate = "calibrate"
    speed = "speed"


class Calibration(Enum):
    """Losses whose learning coefficients are known: src/crux/degeneracy/calibration.py, src/crux/experiments/llc/kgons.py."""

    regular = "regular"
    monomials = "monomials"
    linear_networks = "linear_networks"
    kgons = "kgons"
    escape = "escape"


@dataclass
class Llc:
    """Local learning coefficients."""

    experiment: LlcExperiment = MISSING
    cases: list[Calibration] = MISSING
    """What is calibrated on."""
    length: float = MISSING
    """Draws of every chain are so many times as many as the cases say; burn-in stays."""


class DegeneracyExperiment(Enum):
    """Measures of degeneracy: src/crux/experiments/degeneracy."""

    spectra = "spectra"
    synchronised = "synchronised"


@dataclass
class Degeneracy:
    """What of a network does nothing: dependent activations, dependent Jacobians, synchronised neurons."""

    experiment: DegeneracyExperiment = MISSING


class BasisExperiment(Enum):
    """Networks whose interaction basis is found: src/crux/experiments/interaction_basis."""

    mlp = "mlp"
    modular_addition = "modular_addition"
    modular_addition_training = "modular_addition_training"
    tiny = "tiny"
    gpt2 = "gpt2"


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


@dataclass
class InteractionBasis:
    """The basis in which a network's layers interact sparsely (Bushnaq et al. 2405.10928), and others beside it."""

    experiment: BasisExperiment = MISSING
    addition: Addition | None = None
    """The network that modular_addition trains where model.path does not name one."""
