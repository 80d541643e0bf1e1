"""Compare training with the exact optimum: five equal features in two dimensions, the best of several restarts per density."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import best_streams, instance_losses, select_instance
from crux.toy.exact.optima import exact_optima
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, feature_importances
from crux.toy.figures.optima import plot_excess_losses
from crux.toy.geometry.report import THRESHOLDS, geometry_report
from crux.toy.options import Cooccurrence, Kind, OneSize
from crux.toy.program import Program, TrainedProgram

MAX_EXCESS = 0.005
"""Largest relative excess of the best restart's loss over the exact optimum."""


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build one instance per density and seed."""
    if toy.n_features > 6 or toy.kind is not Kind.relu_output or toy.together is not Cooccurrence.independent:
        raise UserError(
            "experiment=toy/exact_optima needs toy.kind=relu_output, toy.together=independent and at most 6 features"
        )
    return [build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure the excess of each restart's exact loss over the best exact optimum, and compare the shapes."""
    (program,) = trained
    loss = instance_losses(program)
    best = best_streams(loss, n_seeds=toy.seeds)[:, 0].tolist()  # there is one setting, number 0
    checks, metrics, optima, names, rows = [], {}, [], [], []
    for i, (density, stream) in enumerate(zip(toy.densities, best, strict=True)):
        optimum = exact_optima(
            n_hidden=toy.n_hidden,
            importance=feature_importances(toy, toy.n_features).double(),
            density=torch.full((toy.n_features,), density, dtype=torch.float64),
            signed=toy.signed,
            n_random=2,
            seed=run.seed,
            max_iterations=400,
            gradient_tolerance=1e-8,
        )
        exact = float(optimum.loss[0])
        excess = loss[i * toy.seeds : (i + 1) * toy.seeds, 0] / exact - 1
        shape = describe_shapes(select_instance(program.weights, stream, 0).W)
        best_shape = describe_shapes(optimum.W[0])
        optima.append(exact)
        names.append(best_shape)
        metrics |= {f"exact/{density:g}": exact, f"excess/{density:g}": float(excess.min())}
        checks.append(
            Check(f"excess of the best restart at density {density:g}", float(excess.min()), -1e-6, MAX_EXCESS)
        )
        checks.append(Check(f"shape is the optimum's ({best_shape}) at density {density:g}", shape == best_shape, 1, 1))
        n_reached = f"{int((excess < MAX_EXCESS).sum())} of {toy.seeds}"
        best_loss = f"{loss[stream, 0]:.6f}"
        rows.append([f"{density:g}", f"{exact:.6f}", best_shape, best_loss, f"{excess.min():.2%}", shape, n_reached])
    excess = loss[:, 0].unflatten(0, (-1, toy.seeds)) / torch.tensor(optima)[:, None] - 1
    figure = plot_excess_losses(toy.densities, excess.numpy(), shapes=names, close=MAX_EXCESS)
    arrays = {"loss": loss, "exact": torch.tensor(optima), "excess": excess}
    header = ["density", "exact optimum", "its shape", "best restart", "excess", "its shape", "restarts at the optimum"]
    return Result(metrics, checks, {"excess": figure}, arrays, markdown_table(header, rows))


def describe_shapes(W: Float[Tensor, "n_hidden n_features"]) -> str:
    """Return the shapes that the features form as text, such as "1 pentagon"."""
    return " + ".join(f"{n} {name}" for name, n in sorted(geometry_report(W, **THRESHOLDS).names.items()))


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
