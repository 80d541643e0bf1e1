"""Does training find the exact optimum? Five equal features in two dimensions, the best of some restarts at each density."""

from collections.abc import Sequence

import torch

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import best_of_seeds, instance, losses
from crux.toy.exact.optima import exact_optima
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, feature_importances
from crux.toy.figures.optima import toy_optima
from crux.toy.geometry.report import THRESHOLDS, geometry_report
from crux.toy.options import Kind, OneSize, Together
from crux.toy.program import Program, Trained

CLOSE = 0.005
"""By how much of it the loss of the best restart may be above the exact optimum."""


def programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance for each density and seed."""
    if toy.n_features > 6 or toy.kind is not Kind.relu_output or toy.together is not Together.independent:
        raise UserError(
            "experiment=toy/exact_optima: exact optima are searched for toy.kind=relu_output, toy.together=independent and "
            "up to 6 features"
        )
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure the excess of each restart's exact loss over the best exact optimum, and the shapes that they end in."""
    (found,) = trained
    loss = losses(found)
    best = best_of_seeds(loss, n_seeds=toy.seeds)[:, 0].tolist()
    checks, metrics, truths, names, rows = [], {}, [], [], []
    for i, (density, stream) in enumerate(zip(toy.densities, best, strict=True)):
        truth = exact_optima(
            n_hidden=toy.n_hidden,
            importance=feature_importances(toy, toy.n_features).double(),
            density=torch.full((toy.n_features,), density, dtype=torch.float64),
            signed=toy.signed,
            n_random=2,
            seed=run.seed,
            max_iterations=400,
            gradient_tolerance=1e-8,
        )
        exact = float(truth.loss[0])
        mine = loss[i * toy.seeds : (i + 1) * toy.seeds, 0] / exact - 1
        shape, known = (
            " + ".join(f"{n} {name}" for name, n in sorted(geometry_report(W, **THRESHOLDS).names.items()))
            for W in (instance(found.weights, stream, 0).W, truth.W[0])
        )
        truths.append(exact)
        names.append(known)
        metrics |= {f"exact/{density:g}": exact, f"excess/{density:g}": float(mine.min())}
        checks.append(Check(f"excess of the best restart at density {density:g}", float(mine.min()), -1e-6, CLOSE))
        checks.append(Check(f"its shape is the optimum's ({known}) at density {density:g}", shape == known, 1, 1))
        there = int((mine < CLOSE).sum())
        reached = f"{there} of {toy.seeds}"
        rows.append(
            [f"{density:g}", f"{exact:.6f}", known, f"{loss[stream, 0]:.6f}", f"{mine.min():.2%}", shape, reached]
        )
    excess = loss[:, 0].unflatten(0, (-1, toy.seeds)) / torch.tensor(truths)[:, None] - 1
    figure = toy_optima(toy.densities, excess.numpy(), shapes=names, close=CLOSE)
    arrays = {"loss": loss, "exact": torch.tensor(truths), "excess": excess}
    header = ["density", "exact optimum", "shape", "best restart", "excess", "shape", "restarts there"]
    return Result(metrics, checks, {"excess": figure}, arrays, markdown_table(header, rows))


EXPERIMENT = ToyExperiment(OneSize, programs, result)
