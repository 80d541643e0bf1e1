"""With few training points a toy model puts the points in superposition, with many the features; in between its test loss peaks.

Henighan et al. 2023, "Superposition, Memorization, and Double Descent". Samples have norm 1; the best seed is the one with the
lowest training loss.
"""

from collections.abc import Sequence

import numpy as np
import torch

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.compare import losses_on_shared_samples
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.features import Purpose
from crux.toy.figures.memorisation import TrainingSetFit, plot_double_descent, plot_hidden_planes
from crux.toy.geometry.dimensionality import dimensionality
from crux.toy.options import DoubleDescent
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import sampled_loss

POLYGON_SIZES = (5, 8)
"""Training sets of these sizes should form a clean polygon."""
MAX_PLANES_DRAWN = 6
"""Largest number of training set sizes whose hidden plane is drawn; they are evenly spaced."""
N_LARGEST = 5
"""The generalising model forms a polygon of about this many features; the sum of the largest D of so many shows whether it does."""


def build_programs(toy: DoubleDescent, *, seed: int) -> list[Program]:
    """Build one program per training set size; its instances differ in their seed and hence in their points."""
    if len(toy.densities) != 1 or toy.n_hidden != 2:
        raise UserError("experiment=toy/double_descent needs toy.points, one density in toy.densities, toy.n_hidden=2")
    fresh = build_model_program(toy, seed=seed)
    distribution = fresh.distribution._replace(unit=toy.unit)
    return [
        fresh._replace(name=f"points_{points:05d}", distribution=distribution, points=points)
        for points in sorted(toy.points)
    ]


def result(toy: DoubleDescent, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure losses, dimensionalities and hidden planes for each training set size."""
    sizes = [measure_size(one, n_seeds=toy.seeds, held_out=toy.held_out) for one in trained]
    metrics = {}
    for size in sizes:
        metrics |= {
            f"train_loss/{size.points}": float(size.train[size.best]),
            f"test_loss/{size.points}": float(size.test[size.best]),
            f"top_features/{size.points}": sum_largest_dimensions(size.feature_dimensions),
            f"largest_point/{size.points}": float(size.point_dimensions.max()),
        }
    drawn = sorted({round(i) for i in np.linspace(0, len(sizes) - 1, min(MAX_PLANES_DRAWN, len(sizes)))})
    figures = {"losses": plot_double_descent(sizes), "planes": plot_hidden_planes([sizes[i] for i in drawn])}
    arrays = {f"W_{size.points}": torch.from_numpy(size.features) for size in sizes}
    arrays |= {f"hidden_{size.points}": torch.from_numpy(size.hidden) for size in sizes}
    arrays |= {
        "points": torch.tensor([size.points for size in sizes]),
        "train": torch.stack([torch.from_numpy(size.train) for size in sizes]),
        "test": torch.stack([torch.from_numpy(size.test) for size in sizes]),
        "best": torch.tensor([size.best for size in sizes]),
    }
    return Result(metrics, check_regimes(sizes), figures, arrays, "")


def measure_size(trained: TrainedProgram, *, n_seeds: int, held_out: int) -> TrainingSetFit:
    """Measure the best instance of one training set size."""
    points = trained.program.points
    assert points is not None
    x = trained.program.data(batch=points, n_batches=1, purpose=Purpose.training)[0]
    with torch.no_grad():
        train = sampled_loss(trained.model, x, trained.program.importance)[:, 0]
    test = losses_on_shared_samples(trained, n_seeds=n_seeds, samples=held_out)[:, 0]
    best = int(train.argmin())
    W = trained.weights.W[best, 0]
    x = x[best][x[best].any(-1)]  # a point without an active feature has no hidden vector
    hidden = W @ x.mT
    return TrainingSetFit(
        points=points,
        train=train.numpy(),
        test=test.float().numpy(),
        best=best,
        features=W.numpy(),
        hidden=hidden.numpy(),
        feature_dimensions=dimensionality(W).numpy(),
        point_dimensions=dimensionality(hidden).numpy(),
    )


def check_regimes(fits: Sequence[TrainingSetFit]) -> list[Check]:
    """Check the three regimes.

    Few points form a polygon, with many points features form one, and the test loss is highest in between.
    """
    checks = []
    for fit in fits:
        if fit.points in POLYGON_SIZES:
            relative = fit.point_dimensions * len(fit.point_dimensions) / 2  # D of a regular polygon is 2 / points
            what = f"dimensionality of {fit.points} points, relative to a regular polygon"
            checks += [
                Check(f"{what}: lowest", float(relative.min()), 0.75, 1.05),
                Check(f"{what}: highest", float(relative.max()), 0.95, 1.25),
            ]
            checks.append(
                Check(
                    f"dimensions of the {N_LARGEST} largest features, {fit.points} points",
                    sum_largest_dimensions(fit.feature_dimensions),
                    0,
                    1.3,
                )
            )
    few, many = fits[0], fits[-1]
    test = [float(fit.test[fit.best]) for fit in fits]
    peak = int(np.argmax(test))
    return [
        *checks,
        Check(
            f"dimensions of the {N_LARGEST} largest features, {many.points} points",
            sum_largest_dimensions(many.feature_dimensions),
            1.5,
            2,
        ),
        Check(f"largest dimensionality of a point among {many.points}", float(many.point_dimensions.max()), 0, 0.1),
        Check("number of points with the highest test loss", fits[peak].points, fits[1].points, fits[-2].points),
        Check(f"highest test loss / that of {few.points} points", test[peak] / test[0], 1.1, np.inf),
        Check(f"highest test loss / that of {many.points} points", test[peak] / test[-1], 1.1, np.inf),
        Check(f"train loss / test loss, {many.points} points", float(many.train[many.best]) / test[-1], 0.9, 1.02),
    ]


def sum_largest_dimensions(dimensions: np.ndarray) -> float:
    """Return the sum of the N_LARGEST largest D; 2 if these form a polygon and the other features vanish."""
    return float(np.sort(dimensions)[-N_LARGEST:].sum())


EXPERIMENT = ToyExperiment(DoubleDescent, build_programs, result)
