"""Correlated features, active together: each set forms an orthogonal basis, or a narrow cone if there is too little room.

Elhage et al. 2209.10652, "Correlated and anticorrelated features". Orthogonal features of a set do not interfere, and antipodal
features of different sets are seldom active together. If there is no room for one basis per set, the features of a set are close to
each other: positive interference costs less than negative interference, which the ReLU would have to remove.
"""

from collections.abc import Sequence

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.best_instances import find_best_instances
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_program_of_size
from crux.toy.figures.polygons import density_title
from crux.toy.figures.sets import SetModels, plot_feature_sets
from crux.toy.geometry.sets import cosines_within_sets, lowest_cosine_across_sets
from crux.toy.options import Cooccurrence, SeveralSizes
from crux.toy.program import Program, TrainedProgram


def build_programs(toy: SeveralSizes, *, seed: int) -> list[Program]:
    """Build one instance per size, density and seed."""
    if toy.together is not Cooccurrence.correlated:
        raise UserError("toy.together: experiment=toy/correlated needs correlated features")
    return [build_program_of_size(toy, size, seed=seed, name=size.name) for size in toy.model_sizes]


def result(toy: SeveralSizes, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure the angles within and between the sets of the best instances."""
    checks, metrics, arrays, drawn = [], {}, {}, []
    for size, program in zip(toy.model_sizes, trained, strict=True):
        name, (n_features, n_hidden, n_sets) = size.name, size
        best = find_best_instances(program, run, n_seeds=toy.seeds)
        cosines_within = cosines_within_sets(best.W, n_sets=n_sets)
        lowest_across = lowest_cosine_across_sets(best.W, n_sets=n_sets)
        model = f"{n_features} → {n_hidden}, {n_sets} sets"
        if n_features <= 2 * n_hidden:  # room for one basis per set
            checks.append(Check(f"{model}: largest |cosine| within a set", float(cosines_within.abs().max()), 0, 0.1))
            if n_hidden == 2:  # in a plane, two bases must consist of antipodal pairs
                what = f"{model}: largest cosine with the opposite feature of the other set"
                checks.append(Check(what, float(lowest_across.max()), -1.0001, -0.9))
        else:
            checks.append(Check(f"{model}: smallest cosine within a set", float(cosines_within.min()), 0.3, 1.0001))
        for i, density in enumerate(toy.densities):
            metrics[f"loss/{name}/{density:g}"] = float(best.loss[i])
            metrics[f"cosine_within/{name}/{density:g}"] = float(cosines_within[i].mean())
        arrays |= {f"{name}/W": best.W, f"{name}/loss": best.loss}
        titles = [f"{model}\n{density_title(density)}" for density in toy.densities]
        drawn.append(SetModels(best.W.float().numpy(), n_sets, titles))
    return Result(metrics, checks, {"sets": plot_feature_sets(drawn)}, arrays, "")


EXPERIMENT = ToyExperiment(SeveralSizes, build_programs, result)
