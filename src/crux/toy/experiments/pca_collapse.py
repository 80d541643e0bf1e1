"""Three correlated pairs in two dimensions: the denser they are, the more pairs collapse onto one direction, as in PCA.

Elhage et al. 2209.10652, "Correlated features": instead of using superposition the model represents the sum of a pair, its first
principal component, and discards the difference. The paper states how many of the three pairs collapse at which density.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.best_instances import find_best_instances
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.polygons import density_title
from crux.toy.figures.sets import SetModels, plot_feature_sets
from crux.toy.geometry.sets import lowest_cosine_within_sets
from crux.toy.options import Cooccurrence, OneSize
from crux.toy.program import Program, TrainedProgram

MIN_COLLAPSED_COSINE = 0.95
"""A pair has collapsed if its cosine is above this value; at exact optima it is above 0.99 or below 0.5."""


class Range(NamedTuple):
    """The densities at which a given number of the three pairs collapse."""

    low: float
    high: float


PAPER_RANGES = {0: Range(0, 0.05), 1: Range(0.05, 0.15), 2: Range(0.15, 0.2), 3: Range(0.25, 0.5)}
"""The paper's thresholds (docs/reference/toy_models.md §3)."""

EXACT_RANGES = {0: Range(0, 0.073), 1: Range(0.073, 0.143), 2: Range(0.143, 0.394), 3: Range(0.394, 0.5)}
"""Ranges bounded by the densities at which the exact losses of the best optima cross (L-BFGS from each arrangement and from random
starts). Three collapsed pairs do not win below 0.394, although the paper's models have them from 0.25 on.
"""


def counts_in_ranges(ranges: dict[int, Range], density: float) -> list[int]:
    """Return the numbers of collapsed pairs whose range contains the density; empty if none does."""
    return [n for n, (low, high) in ranges.items() if low < density <= high]


def expected_counts(density: float) -> list[int]:
    """Return the numbers of collapsed pairs that are expected at a density, by the paper or by the exact optima; may be empty."""
    return counts_in_ranges(PAPER_RANGES, density) + counts_in_ranges(EXACT_RANGES, density)


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance per density and seed."""
    if toy.together is not Cooccurrence.correlated or (toy.n_features, toy.n_hidden, toy.n_sets) != (6, 2, 3):
        raise UserError("experiment=toy/pca_collapse needs three correlated pairs in two dimensions: 6 → 2, 3 sets")
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Count the collapsed pairs of the best instances."""
    (program,) = trained
    best = find_best_instances(program, run, n_seeds=toy.seeds)
    cosines = lowest_cosine_within_sets(best.W, n_sets=toy.n_sets)
    checks, metrics, titles = [], {}, []
    for i, density in enumerate(toy.densities):
        n, expected = int((cosines[i] > MIN_COLLAPSED_COSINE).sum()), expected_counts(density)
        if expected:
            checks.append(Check(f"pairs collapsed at density {density:.3g}", n, min(expected), max(expected)))
        metrics[f"collapsed/{density:g}"] = float(n)
        metrics[f"loss/{density:g}"] = float(best.loss[i])
        titles.append(f"{density_title(density)}\n{n} of 3 pairs collapsed")
    drawn = SetModels(best.W.float().numpy(), toy.n_sets, titles)
    arrays = {"W": best.W, "loss": best.loss, "cosine": cosines, "density": torch.tensor(toy.densities)}
    return Result(
        metrics, checks, {"pairs": plot_feature_sets([drawn])}, arrays, _build_table(toy.densities, cosines.tolist())
    )


def _build_table(densities: Sequence[float], cosines: list[list[float]]) -> str:
    """Return one row per density: the cosines within the pairs, and the measured and expected numbers of collapsed pairs."""

    def write_counts(ranges: dict[int, Range], density: float) -> str:
        return " or ".join(map(str, counts_in_ranges(ranges, density))) or "?"

    rows = []
    for density, pairs in zip(densities, cosines, strict=True):
        n = sum(c > MIN_COLLAPSED_COSINE for c in pairs)
        values = ", ".join(f"{c:.2f}" for c in sorted(pairs))
        rows.append(
            [f"{density:.3g}", values, n, write_counts(PAPER_RANGES, density), write_counts(EXACT_RANGES, density)]
        )
    return markdown_table(["density", "cosine within the pairs", "collapsed", "the paper", "exact optimum"], rows)


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
