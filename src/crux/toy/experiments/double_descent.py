"""Trained on few points, a toy model puts the points in superposition; on many, the features; between, its test loss has a bump.

Henighan et al. 2023, "Superposition, Memorization, and Double Descent". Samples have norm 1; the best of the seeds is the one that fits
its own training points best.
"""

from collections.abc import Sequence

import numpy as np
import torch

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.compare import shared_losses
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.features import Purpose
from crux.toy.figures.memorised import Size, toy_losses, toy_planes
from crux.toy.geometry.dimensionality import dimensionality
from crux.toy.options import DoubleDescent
from crux.toy.program import Program, Trained
from crux.toy.superposition import error

FEW = (5, 8)
"""So many points should make a clean polygon."""
SHOWN = 6
"""Sizes whose plane is drawn, evenly spread."""
TOP = 5
"""Features of a pentagon, of which the generalising model makes one (or a polygon near it)."""


def programs(toy: DoubleDescent, *, seed: int) -> list[Program]:
    """Build one program per size of the training set; its instances are the seeds, each with points of its own."""
    if len(toy.densities) != 1 or toy.n_hidden != 2:
        raise UserError("experiment=toy/double_descent needs toy.points, one density in toy.densities, toy.n_hidden=2")
    fresh = build_model_program(toy, seed=seed)
    features = fresh.features._replace(unit=toy.unit)
    return [
        fresh._replace(name=f"points_{points:05d}", features=features, points=points) for points in sorted(toy.points)
    ]


def result(toy: DoubleDescent, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure losses, dimensionality and planes by the size of the training set."""
    sizes = [measure_size(one, n_seeds=toy.seeds, held_out=toy.held_out) for one in trained]
    metrics = {}
    for size in sizes:
        metrics |= {
            f"train_loss/{size.points}": float(size.train[size.best]),
            f"test_loss/{size.points}": float(size.test[size.best]),
            f"top_features/{size.points}": top(size.feature_dimensions),
            f"largest_point/{size.points}": float(size.point_dimensions.max()),
        }
    shown = sorted({round(i) for i in np.linspace(0, len(sizes) - 1, min(SHOWN, len(sizes)))})
    figures = {"losses": toy_losses(sizes), "planes": toy_planes([sizes[i] for i in shown])}
    arrays = {f"W_{size.points}": torch.from_numpy(size.features) for size in sizes}
    arrays |= {f"hidden_{size.points}": torch.from_numpy(size.hidden) for size in sizes}
    arrays |= {
        "points": torch.tensor([size.points for size in sizes]),
        "train": torch.stack([torch.from_numpy(size.train) for size in sizes]),
        "test": torch.stack([torch.from_numpy(size.test) for size in sizes]),
        "best": torch.tensor([size.best for size in sizes]),
    }
    return Result(metrics, checks(sizes), figures, arrays, "")


def measure_size(trained: Trained, *, n_seeds: int, held_out: int) -> Size:
    """Measure what the best instance of a size made of its points."""
    points = trained.program.points
    assert points is not None
    x = trained.program.data(batch=points, n_batches=1, purpose=Purpose.training)[0]
    with torch.no_grad():
        train = error(trained.model, x, trained.program.importance)[:, 0]
    test = shared_losses(trained, n_seeds=n_seeds, samples=held_out)[:, 0]
    best = int(train.argmin())
    W = trained.weights.W[best, 0]
    x = x[best][x[best].any(-1)]  # a point without an active feature has no hidden vector
    hidden = W @ x.mT
    return Size(
        points=points,
        train=train.numpy(),
        test=test.float().numpy(),
        best=best,
        features=W.numpy(),
        hidden=hidden.numpy(),
        feature_dimensions=dimensionality(W).numpy(),
        point_dimensions=dimensionality(hidden).numpy(),
    )


def checks(sizes: Sequence[Size]) -> list[Check]:
    """Check the three regimes: few points make a polygon, many let features make one, in between neither, and the test loss is worst."""
    found = []
    for size in sizes:
        if size.points in FEW:
            share = size.point_dimensions * len(size.point_dimensions) / 2
            what = f"dimensionality of {size.points} points, share of a regular polygon's"
            found += [
                Check(f"{what}: least", float(share.min()), 0.75, 1.05),
                Check(f"{what}: most", float(share.max()), 0.95, 1.25),
            ]
            found.append(
                Check(
                    f"dimensions of the {TOP} largest features, {size.points} points",
                    top(size.feature_dimensions),
                    0,
                    1.3,
                )
            )
    few, many = sizes[0], sizes[-1]
    test = [float(size.test[size.best]) for size in sizes]
    peak = int(np.argmax(test))
    return [
        *found,
        Check(f"dimensions of the {TOP} largest features, {many.points} points", top(many.feature_dimensions), 1.5, 2),
        Check(f"largest dimensionality of a point among {many.points}", float(many.point_dimensions.max()), 0, 0.1),
        Check("test loss is worst at so many points", sizes[peak].points, sizes[1].points, sizes[-2].points),
        Check(f"worst test loss over that of {few.points} points", test[peak] / test[0], 1.1, np.inf),
        Check(f"worst test loss over that of {many.points} points", test[peak] / test[-1], 1.1, np.inf),
        Check(f"train loss over test loss, {many.points} points", float(many.train[many.best]) / test[-1], 0.9, 1.02),
    ]


def top(dimensions: np.ndarray) -> float:
    """Return Σ D of the TOP largest; 2 where they make a polygon and the others vanish."""
    return float(np.sort(dimensions)[-TOP:].sum())


EXPERIMENT = ToyExperiment(DoubleDescent, programs, result)
