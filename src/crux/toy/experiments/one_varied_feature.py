"""Five features in two dimensions, one of them sparser or denser: the pentagon is deformed, then two digons become better.

Elhage et al. 2209.10652, "Non-uniform superposition": many restarts, all of whose local optima are recorded; their losses cross.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result, finite_or_none
from crux.toy.exact.best import instance_losses
from crux.toy.exact.optima import START_NOISE, Arrangement, build_start, distinct_arrangements
from crux.toy.exact.polish import polish
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_program, feature_importances, uniform_densities
from crux.toy.features import FeatureDistribution
from crux.toy.figures.crossing import plot_crossing
from crux.toy.geometry.report import THRESHOLDS, geometry_report, orient_canonically
from crux.toy.options import Cooccurrence, Kind, OneVariedFeature
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import Weights

PENTAGON, DIGONS = "pentagon", "two digons, the varied feature dropped"
POLISH = {"gradient_tolerance": 1e-7, "max_iterations": 500}
RATIOS_DRAWN = (0.15, 0.3, 1.0, 2.0, 4.0)
"""The best geometry is drawn at these density ratios, or at those of the options that are nearest to them."""

SAME_LOSS = 1e-4
"""Relative difference below which two losses of one geometry belong to the same local optimum."""

KNOWN_CROSSING = 3.7
"""Ratio of densities at which pentagon and digons have the same loss, at p = 0.05, to two digits (docs/reference/toy_models.md §4.5)."""


def build_programs(toy: OneVariedFeature, *, seed: int) -> list[Program]:
    """Build one instance per ratio and seed."""
    if (toy.n_features, toy.n_hidden, len(toy.densities)) != (5, 2, 1):
        raise UserError(
            "experiment=toy/one_varied_feature needs toy.n_features=5, toy.n_hidden=2 and one density in toy.densities"
        )
    if max(toy.ratios) * toy.densities[0] > 1:
        raise UserError("toy.ratios: ratio × density must be at most 1")
    density = uniform_densities(toy, toy.n_features).repeat(len(toy.ratios), 1)
    density[:, -1] *= torch.tensor(toy.ratios)
    importance = feature_importances(toy, toy.n_features)[None]
    return [
        build_program(toy, toy.size, seed=seed, name="model", kind=toy.kind, density=density, importance=importance)
    ]


class Optimum(NamedTuple):
    """A local optimum at one ratio."""

    name: str
    loss: float
    """The exact loss."""
    W: Float[Tensor, "n_hidden n_features"]
    n: int
    """Number of restarts that ended there."""


def name_geometry(W: Float[Tensor, "n_hidden n_features"]) -> str:
    """Name the geometry: "pentagon" if all five features form one, however deformed; otherwise its factors, and the dropped feature."""
    shape = geometry_report(W, **THRESHOLDS)
    last = W.shape[1] - 1
    if len(shape.factors) == 1 and len(shape.living) == last + 1 and shape.factors[0].rank == 2:
        return PENTAGON
    if shape.names == {"digon": 2}:
        return DIGONS if last not in shape.living else "two digons, another dropped"
    return " + ".join(f"{n} {name}" if n > 1 else name for name, n in sorted(shape.names.items()))


def distinct_optima(loss: Float[Tensor, "seed"], W: Float[Tensor, "seed n_hidden n_features"]) -> list[Optimum]:
    """Return the distinct local optima of one ratio's restarts, the best first."""
    optima: list[Optimum] = []
    for i in loss.argsort().tolist():
        name, value = name_geometry(W[i]), float(loss[i])
        for k, other in enumerate(optima):
            if other.name == name and value - other.loss <= SAME_LOSS * value:
                optima[k] = other._replace(n=other.n + 1)
                break
        else:
            optima.append(Optimum(name, value, W[i], 1))
    return optima


def find_crossing(first: dict[float, float], second: dict[float, float]) -> tuple[float, float, float]:
    """Return the ratio at which two geometries have the same loss, and the ratios of the data below and above.

    The losses are interpolated linearly between ratios that have both; all three are NaN if the losses do not cross.
    """
    ratios = sorted(first.keys() & second.keys())
    for low, high in pairwise(ratios):
        at_low, at_high = first[low] - second[low], first[high] - second[high]
        if at_low * at_high <= 0 and at_low != at_high:  # the difference of the losses changes its sign
            return low + (high - low) * at_low / (at_low - at_high), low, high
    return math.nan, math.nan, math.nan


def lowest_losses(optima: dict[float, list[Optimum]], name: str) -> dict[float, float]:
    """Return the lowest loss of the optima of one geometry by ratio, for ratios that have such optima."""
    losses = {ratio: [o.loss for o in of_ratio if o.name == name] for ratio, of_ratio in optima.items()}
    return {ratio: min(values) for ratio, values in losses.items() if values}


def polish_arrangements(
    density: Float[Tensor, "ratio n_features"], arrangements: list[Arrangement]
) -> list[list[Optimum]]:
    """Return the local optima that are reached from the arrangements at each of the densities, by polishing on the exact loss."""
    density = density.double()
    starts = [build_start(arrangement, n_hidden=2, mean=p / 2) for p in density for arrangement in arrangements]
    W, b = (torch.stack([start[i] for start in starts])[:, None] for i in (0, 1))
    W = W + START_NOISE * torch.randn(W.shape, generator=torch.Generator().manual_seed(0), dtype=W.dtype)
    program = Program(
        name="exact",
        kind=Kind.relu_output,
        n_hidden=2,
        distribution=FeatureDistribution(Cooccurrence.independent, 1, False),
        seeds=torch.zeros(len(W), dtype=torch.long),
        density=density.repeat_interleave(len(arrangements), 0),
        importance=torch.ones(len(W), 1, density.shape[1]),
        points=None,
    )
    polished = polish(program, Weights(W, b, None), **POLISH)
    by_ratio = (len(density), len(arrangements))
    losses, every_W = (t[:, 0].unflatten(0, by_ratio) for t in (polished.loss, polished.weights.W))
    return [distinct_optima(loss, W) for loss, W in zip(losses, every_W, strict=True)]


def result(toy: OneVariedFeature, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Compare the losses of all local optima against the ratio, and find the ratio at which pentagon and digons cross."""
    (model,) = trained
    ratios = toy.ratios
    polished = polish(model.program, model.weights, **POLISH, compute=partial(compute_once, run.folder))
    loss, W = (t[:, 0].unflatten(0, (-1, toy.seeds)) for t in (polished.loss, polished.weights.W))
    optima = {r: distinct_optima(loss[i], W[i]) for i, r in enumerate(ratios)}
    density = model.program.density[:: toy.seeds]
    kinds = [*[0] * (toy.n_features - 1), 1]  # all but the varied feature are interchangeable
    exact = polish_arrangements(density, distinct_arrangements(kinds, 2))
    best = [min(o.loss for o in of_ratio) for of_ratio in exact]

    crossing, low, high = find_crossing(lowest_losses(optima, PENTAGON), lowest_losses(optima, DIGONS))
    exact_crossing = math.nan
    if math.isfinite(crossing):  # find the exact crossing on a finer grid between the two ratios
        fine_ratios = torch.linspace(low, high, 6).tolist()
        fine_density = density[:1].repeat(len(fine_ratios), 1)
        fine_density[:, -1] = toy.densities[0] * torch.tensor(fine_ratios)
        pentagon, two_digons = (tuple(range(5)),), ((0, 1), (2, 3))
        fine_optima = dict(zip(fine_ratios, polish_arrangements(fine_density, [pentagon, two_digons]), strict=True))
        exact_crossing, _, _ = find_crossing(lowest_losses(fine_optima, PENTAGON), lowest_losses(fine_optima, DIGONS))
    trained_loss = instance_losses(model)[:, 0].unflatten(0, (-1, toy.seeds))
    unpolished = {
        r: [Optimum(name_geometry(W[i, j]), float(trained_loss[i, j]), W[i, j], 1) for j in range(toy.seeds)]
        for i, r in enumerate(ratios)
    }
    unpolished_crossing, _, _ = find_crossing(lowest_losses(unpolished, PENTAGON), lowest_losses(unpolished, DIGONS))
    excess = max(float(loss[i].min()) / best[i] - 1 for i in range(len(ratios)))
    checks = [
        Check(
            "exact crossing of pentagon and digons (1 / density ratio)",
            1 / exact_crossing,
            KNOWN_CROSSING - 0.05,
            KNOWN_CROSSING + 0.05,
        ),
        Check(
            "crossing of the trained models / exact crossing (1 / density ratio)", exact_crossing / crossing, 0.98, 1.02
        ),
        Check("largest relative excess of the best restart's exact loss", excess, -0.005, 0.005),
    ]
    metrics = {
        "crossing": finite_or_none(1 / crossing),
        "crossing_exact": finite_or_none(1 / exact_crossing),
        "crossing_unpolished": finite_or_none(1 / unpolished_crossing),
        "local_optima": sum(map(len, optima.values())) / len(optima),
        "unfinished": float((~polished.converged).float().mean()),
    }
    drawn = sorted({min(ratios, key=lambda r, wanted=wanted: abs(math.log(r / wanted))) for wanted in RATIOS_DRAWN})
    names = sorted(
        {o.name for of_ratio in optima.values() for o in of_ratio},
        key=lambda name: min(lowest_losses(optima, name).values()),
    )
    # `flip` makes the varied feature, the last, the first: it points along +x in every panel.
    best_W = {r: orient_canonically(optima[r][0].W.flip(1), living=THRESHOLDS["living"]).flip(1) for r in drawn}
    figure = plot_crossing(
        {name: lowest_losses(optima, name) for name in names},
        exact=dict(zip(ratios, best, strict=True)),
        crossing=crossing,
        density=toy.densities[0],
        weights={r: W.float().numpy() for r, W in best_W.items()},
    )
    arrays = {
        "W": W,
        "loss": loss,
        "loss_trained": trained_loss,
        "exact_best": torch.tensor(best),
        "ratios": torch.tensor(ratios),
    }
    return Result(
        {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)},
        checks,
        {"crossing": figure},
        arrays,
        _build_table(optima),
    )


def _build_table(optima: dict[float, list[Optimum]]) -> str:
    rows = [[f"{r:.3g}", o.name, f"{o.loss:.6f}", o.n] for r, of_ratio in optima.items() for o in of_ratio]
    return markdown_table(["density ratio", "local optimum", "exact loss", "restarts"], rows)


EXPERIMENT = ToyExperiment(OneVariedFeature, build_programs, result)
