"""Features that are active together: each set lies in an orthogonal basis of its own, or side by side where there is no room.

Elhage et al. 2209.10652, "Correlated and anticorrelated features". Orthogonal features of a set do not disturb each other, and
antipodal ones of different sets are seldom active together; where each set cannot have its basis, mates are near each
other: interference that is positive costs less than a negative one that the ReLU would have to cut.
"""

from collections.abc import Sequence

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.in_sets import find_best
from crux.toy.experiments.programs import build_program_of_size
from crux.toy.figures.polygons import density_title
from crux.toy.figures.sets import SetModels, toy_sets
from crux.toy.geometry.sets import opposite, within
from crux.toy.options import SeveralSizes, Together
from crux.toy.program import Program, Trained


def programs(toy: SeveralSizes, *, seed: int) -> list[Program]:
    """Build, for each size, an instance for every density and seed."""
    if toy.together is not Together.correlated:
        raise UserError("toy.together: experiment=toy/correlated is about correlated features")
    return [build_program_of_size(toy, size, seed=seed, name=size.name) for size in toy.model_sizes]


def result(toy: SeveralSizes, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure the angles within and between the sets of the best instances."""
    checks, metrics, arrays, drawn = [], {}, {}, []
    for size, found in zip(toy.model_sizes, trained, strict=True):
        name, (n_features, n_hidden, n_sets) = size.name, size
        best = find_best(found, run, n_seeds=toy.seeds)
        inside, across = within(best.W, n_sets=n_sets), opposite(best.W, n_sets=n_sets)
        said = f"{n_features} → {n_hidden}, {n_sets} sets"
        if n_features <= 2 * n_hidden:  # two sets: room for a basis each
            checks.append(Check(f"{said}: |cosine| within a set, the largest", float(inside.abs().max()), 0, 0.1))
            if n_hidden == 2:  # a basis of a plane has no other place that leaves each feature a digon
                what = f"{said}: cosine with the opposite feature of the other set, the largest"
                checks.append(Check(what, float(across.max()), -1.0001, -0.9))
        else:
            checks.append(Check(f"{said}: cosine within a set, the smallest", float(inside.min()), 0.3, 1.0001))
        for i, density in enumerate(toy.densities):
            metrics[f"loss/{name}/{density:g}"] = float(best.loss[i])
            metrics[f"cosine_within/{name}/{density:g}"] = float(inside[i].mean())
        arrays |= {f"{name}/W": best.W, f"{name}/loss": best.loss}
        titles = [f"{said}\n{density_title(density)}" for density in toy.densities]
        drawn.append(SetModels(best.W.float().numpy(), n_sets, titles))
    return Result(metrics, checks, {"sets": toy_sets(drawn)}, arrays, "")


EXPERIMENT = ToyExperiment(SeveralSizes, programs, result)
