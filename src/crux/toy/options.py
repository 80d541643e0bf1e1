"""Keys of experiments with toy models: a part of schema.py, whose rules hold here too."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING


class ToyKind(Enum):
    """A toy model: src/crux/toy/superposition.py has the formulas."""

    linear = "linear"
    relu_output = "relu_output"
    relu_hidden = "relu_hidden"
    absolute_value = "absolute_value"


class Together(Enum):
    """How synthetic features occur together: src/crux/toy/features.py."""

    independent = "independent"
    correlated = "correlated"
    anticorrelated = "anticorrelated"
    one_active = "one_active"


@dataclass
class Toy:
    """A toy model of superposition, and the experiment that is made with it."""

    experiment: str = MISSING
    """Which: a file in src/crux/experiments/toy."""
    kind: ToyKind = MISSING
    n_features: int = MISSING
    n_hidden: int = MISSING
    importance: float = MISSING
    """Feature i (from 0) counts importance^i in the loss."""
    densities: list[float] = MISSING
    """p = 1 − S of a feature, the same for all; an instance for each and each seed."""
    together: Together = MISSING
    n_sets: int = MISSING
    """Equal sets of features that are correlated, or anticorrelated."""
    signed: bool = MISSING
    """Magnitudes from [-1, 1) instead of [0, 1)."""
    seeds: int = MISSING
    """Instances of each setting: seed, seed + 1, …"""
    ratios: list[float] | None = None
    """Of one feature's importance (phase_diagram) or density (one_varied_feature) to the others'."""
    points: list[int] | None = None
    """Sizes of finite training sets; fresh data in every step where not given."""
    held_out: int = MISSING
    """Samples that the loss of a trained instance is measured on."""
    snapshots: int = MISSING
    """How often in training the weights are kept, evenly spaced; 0: never."""
    tile: int = MISSING
    """Most streams (densities × seeds) that train as one program."""
    sizes: list[list[int]] | None = None
    """[n_features, n_hidden, n_sets] of each model, where an experiment trains several sizes; goes before those three keys."""
    unit: bool = MISSING
    """Samples at norm 1 (double_descent)."""
    init_scale: float = MISSING
    """Of the initial weights to Xavier's; below one, learning goes from plateau to plateau."""


OPTIONS: dict[str, dict[str, type]] = {}
