"""The options of `experiment=toy/absorption`. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, Le, MinLen
from omegaconf import MISSING

from crux.config.schema import Count, Job, Rate, RateOrZero


@dataclass
class PlantedHierarchy:
    """Pairs of features of which one, the child, implies the other one, and the small SAEs that are trained on them."""

    pairs: Annotated[int, Ge(1), Le(512)] = MISSING
    """Number of pairs of a parent and a child; an SAE has as many latents as there are features, or half as many."""
    parent_density: Annotated[float, Gt(0), Le(1)] = MISSING
    """Probability that a parent is on."""
    child_share: Annotated[float, Gt(0), Le(1)] = MISSING
    """Probability that a child is on if its parent is."""
    sparsities: Annotated[list[RateOrZero], MinLen(1)] = MISSING
    """Weights λ of the sparsity penalty, each with SAEs of its own."""
    seeds: Annotated[int, Ge(2), Le(1000)] = MISSING
    """Number of SAEs that differ only in their seed, which is seed, seed + 1, …"""
    steps: Count = MISSING
    """Optimiser steps of each SAE."""
    batch: Count = MISSING
    """Samples per step."""
    lr: Rate = MISSING
    """Learning rate of Adam."""
    samples: Count = MISSING
    """Fresh samples on which each SAE is measured."""


@dataclass
class AbsorptionJob(Job):
    """A job that measures absorption and hedging where the true features are known."""

    hierarchy: PlantedHierarchy = MISSING

    runner: ClassVar[str] = "crux.toy.absorption_job.run"

    def run_name(self) -> str:
        return "toy absorption"

    def mlflow_params(self) -> dict[str, object]:
        plain = {key: value for key, value in vars(self.hierarchy).items() if key != "sparsities"}
        sparsities = ",".join(f"{value:g}" for value in self.hierarchy.sparsities)
        return {"experiment": "toy/absorption", "seed": self.seed, "sparsities": sparsities, **plain}
