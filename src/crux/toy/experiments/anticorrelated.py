"""Features of which only one of a set is active at a time: they share a line, with opposite signs.

Elhage et al. 2209.10652, "Correlated and anticorrelated features": antipodal features never disturb each other then, and the loss is 0.
"""

from collections.abc import Sequence

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.in_sets import find_best
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.polygons import density_title
from crux.toy.figures.sets import SetModels, toy_sets
from crux.toy.geometry.sets import cosines, mates, within
from crux.toy.options import OneSize, Together
from crux.toy.program import Program, Trained


def programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance for each density and seed."""
    if toy.together is not Together.anticorrelated or toy.n_features != 2 * toy.n_sets or toy.n_sets > toy.n_hidden:
        raise UserError(
            "experiment=toy/anticorrelated is about anticorrelated features in sets of two, and no more sets than dimensions"
        )
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure the angles within and between the sets of the best instances."""
    (found,) = trained
    best = find_best(found, run, n_seeds=toy.seeds)
    inside = within(best.W, n_sets=toy.n_sets)
    others = ~mates(toy.n_features, toy.n_sets).fill_diagonal_(True)
    across = cosines(best.W)[:, others]
    checks = [
        Check("cosine within a set, the largest", float(inside.max()), -1.0001, -0.95),
        Check("|cosine| between sets, the largest", float(across.abs().max()), 0, 0.1),
        Check("exact loss of the best, the largest", float(best.loss.max()), -1e-8, 1e-5),
    ]
    metrics = {f"loss/{density:g}": float(best.loss[i]) for i, density in enumerate(toy.densities)}
    drawn = SetModels(best.W.float().numpy(), toy.n_sets, [density_title(density) for density in toy.densities])
    return Result(metrics, checks, {"sets": toy_sets([drawn])}, {"W": best.W, "loss": best.loss}, "")


EXPERIMENT = ToyExperiment(OneSize, programs, result)
