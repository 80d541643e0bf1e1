"""Five features in two dimensions: two orthogonal features if dense, antipodal pairs or a pentagon if sparse.

Elhage et al. 2209.10652, introduction: at 0, 80 and 90 % sparsity two, four and five features are represented.
"""

from collections.abc import Sequence

import torch

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import best_streams, instance_losses, select_instance
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, feature_importances
from crux.toy.figures.polygons import density_title, plot_polygons
from crux.toy.geometry.report import THRESHOLDS, geometry_report, orient_canonically
from crux.toy.options import OneSize
from crux.toy.program import Program, TrainedProgram

PAPER_COUNTS = {1.0: 2, 0.2: 4, 0.1: 5}
"""Number of features that are represented in the paper, by density."""


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance per density and seed."""
    if toy.n_hidden != 2:
        raise UserError("toy.n_hidden: experiment=toy/intro_polygon draws a plane and needs 2")
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Describe the best instance of each density: the number of represented features and their shapes."""
    (program,) = trained
    loss = instance_losses(program)
    best = best_streams(loss, n_seeds=toy.seeds)[:, 0].tolist()  # there is one setting, number 0
    checks, metrics, drawn, sections = [], {}, [], []
    for density, stream in zip(toy.densities, best, strict=True):
        weights = select_instance(program.weights, stream, 0)
        shape = geometry_report(weights.W, **THRESHOLDS)
        drawn.append(orient_canonically(weights.W, living=THRESHOLDS["living"]))
        metrics[f"loss/{density:g}"] = float(loss[stream, 0])
        metrics[f"living/{density:g}"] = float(len(shape.living))
        sections.append(f"## Density {density:g}: exact loss {loss[stream, 0]:.5f}\n\n{shape}")
        if density in PAPER_COUNTS:
            n = PAPER_COUNTS[density]
            checks.append(Check(f"features represented at density {density:g}", len(shape.living), n, n))
    figure = plot_polygons(
        torch.stack(drawn).numpy(),
        importances=feature_importances(toy, toy.n_features).numpy(),
        titles=[density_title(density) for density in toy.densities],
    )
    arrays = {"W": torch.stack(drawn), "loss": loss, "best": torch.tensor(best)}
    return Result(metrics, checks, {"polygons": figure}, arrays, "\n\n".join(sections))


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
