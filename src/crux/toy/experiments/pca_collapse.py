"""Three correlated pairs in two dimensions: the denser, the more pairs collapse onto one direction, as principal components would.

Elhage et al. 2209.10652, "Correlated features": instead of superposition the model represents the sum of a pair, its first
principal component, and forgets the difference. The paper says how many of three pairs do, by density.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.in_sets import find_best
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.polygons import density_title
from crux.toy.figures.sets import SetModels, toy_sets
from crux.toy.geometry.sets import collapsed
from crux.toy.options import OneSize, Together
from crux.toy.program import Program, Trained

SAME_DIRECTION = 0.95
"""Cosine from which a pair has collapsed: at exact optima it is above .99, or below .5."""


class Range(NamedTuple):
    """Densities at which so many of the three pairs collapse."""

    low: float
    high: float


PAPER = {0: Range(0, 0.05), 1: Range(0.05, 0.15), 2: Range(0.15, 0.2), 3: Range(0.25, 0.5)}
"""The paper's thresholds (docs/reference/toy_models.md §3)."""

EXACT = {0: Range(0, 0.073), 1: Range(0.073, 0.143), 2: Range(0.143, 0.394), 3: Range(0.394, 0.5)}
"""Where the exact losses of the best optimum with so many meet (L-BFGS from each arrangement and from random starts). Three
collapsed pairs do not win before 0.394, though the paper's models have them from 0.25 on."""


def allowed(density: float) -> list[int]:
    """Return what may come out at a density: what the paper saw or what is exactly the best; empty above both."""
    return [n for ranges in (PAPER, EXACT) for n, (low, high) in ranges.items() if low < density <= high]


def programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance for each density and seed."""
    if toy.together is not Together.correlated or (toy.n_features, toy.n_hidden, toy.n_sets) != (6, 2, 3):
        raise UserError("experiment=toy/pca_collapse is about three correlated pairs in two dimensions: 6 → 2, 3 sets")
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Count how many pairs of the best instances have collapsed."""
    (found,) = trained
    best = find_best(found, run, n_seeds=toy.seeds)
    together = collapsed(best.W, n_sets=toy.n_sets)
    checks, metrics, titles = [], {}, []
    for i, density in enumerate(toy.densities):
        n, may = int((together[i] > SAME_DIRECTION).sum()), allowed(density)
        if may:
            checks.append(Check(f"pairs collapsed at density {density:.3g}", n, min(may), max(may)))
        metrics[f"collapsed/{density:g}"] = float(n)
        metrics[f"loss/{density:g}"] = float(best.loss[i])
        titles.append(f"{density_title(density)}\n{n} of 3 pairs collapsed")
    drawn = SetModels(best.W.float().numpy(), toy.n_sets, titles)
    arrays = {"W": best.W, "loss": best.loss, "cosine": together, "density": torch.tensor(toy.densities)}
    return Result(metrics, checks, {"pairs": toy_sets([drawn])}, arrays, _table(toy.densities, together.tolist()))


def _table(densities: Sequence[float], cosines: list[list[float]]) -> str:
    def said(ranges: dict[int, Range], density: float) -> str:
        return " or ".join(str(n) for n, (low, high) in ranges.items() if low < density <= high) or "?"

    rows = []
    for density, pairs in zip(densities, cosines, strict=True):
        n = sum(c > SAME_DIRECTION for c in pairs)
        shown = ", ".join(f"{c:.2f}" for c in sorted(pairs))
        rows.append([f"{density:.3g}", shown, n, said(PAPER, density), said(EXACT, density)])
    return markdown_table(["density", "cosine within the pairs", "collapsed", "the paper", "exact optimum"], rows)


EXPERIMENT = ToyExperiment(OneSize, programs, result)
