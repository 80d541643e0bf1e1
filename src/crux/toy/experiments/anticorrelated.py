"""Anticorrelated features, at most one active per set: the features of a set share a line, with opposite signs.

Elhage et al. 2209.10652, "Correlated and anticorrelated features". Such antipodal features never interfere, and the loss is 0.
"""

from collections.abc import Sequence

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.best_instances import find_best_instances
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.polygons import density_title
from crux.toy.figures.sets import SetModels, plot_feature_sets
from crux.toy.geometry.sets import cosines_within_sets, pairwise_cosines, same_set_pairs
from crux.toy.options import Cooccurrence, OneSize
from crux.toy.program import Program, TrainedProgram


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance per density and seed."""
    if toy.together is not Cooccurrence.anticorrelated or toy.n_features != 2 * toy.n_sets or toy.n_sets > toy.n_hidden:
        raise UserError(
            "experiment=toy/anticorrelated needs anticorrelated features in sets of two, and no more sets than dimensions"
        )
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure the angles within and between the sets of the best instances."""
    (program,) = trained
    best = find_best_instances(program, run, n_seeds=toy.seeds)
    cosines_within = cosines_within_sets(best.W, n_sets=toy.n_sets)
    different_sets = ~same_set_pairs(toy.n_features, toy.n_sets).fill_diagonal_(True)
    cosines_between = pairwise_cosines(best.W)[:, different_sets]
    checks = [
        Check("largest cosine within a set", float(cosines_within.max()), -1.0001, -0.95),
        Check("largest |cosine| between sets", float(cosines_between.abs().max()), 0, 0.1),
        Check("largest exact loss of the best instances", float(best.loss.max()), -1e-8, 1e-5),
    ]
    metrics = {f"loss/{density:g}": float(best.loss[i]) for i, density in enumerate(toy.densities)}
    drawn = SetModels(best.W.float().numpy(), toy.n_sets, [density_title(density) for density in toy.densities])
    return Result(metrics, checks, {"sets": plot_feature_sets([drawn])}, {"W": best.W, "loss": best.loss}, "")


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
