"""Five features in two dimensions, one of them made sparser or denser: the pentagon stretches, then two digons win.

Elhage et al. 2209.10652, "Non-uniform superposition": many restarts, of which all local optima are kept; their losses cross.
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
from crux.runs.result import Check, Result
from crux.toy.exact.best import losses
from crux.toy.exact.optima import SHAKE, Parts, start_of, structures
from crux.toy.exact.polish import polish
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_program, feature_importances, uniform_densities
from crux.toy.features import FeatureDistribution
from crux.toy.figures.crossing import toy_crossing
from crux.toy.geometry.report import THRESHOLDS, canonical, geometry_report
from crux.toy.options import Kind, OneVariedFeature, Together
from crux.toy.program import Program, Trained
from crux.toy.superposition import Weights

PENTAGON, DIGONS = "pentagon", "two digons, the varied feature dropped"
POLISH = {"gradient_tolerance": 1e-7, "max_iterations": 500}
SHOWN = (0.15, 0.3, 1.0, 2.0, 4.0)
"""Ratios, or those nearest to them, whose best geometry is drawn."""

SAME = 1e-4
"""Relative difference below which two losses of one geometry are one local optimum."""

EXACT_CROSSING = 3.7
"""Ratio of densities at which pentagon and digons have the same loss, at p = 0.05, to two digits (docs/reference/toy_models.md §4.5)."""


def programs(toy: OneVariedFeature, *, seed: int) -> list[Program]:
    """Build one instance for each ratio and seed."""
    if (toy.n_features, toy.n_hidden, len(toy.densities)) != (5, 2, 1):
        raise UserError(
            "experiment=toy/one_varied_feature is about toy.n_features=5, toy.n_hidden=2 at one of toy.densities"
        )
    if max(toy.ratios) * toy.densities[0] > 1:
        raise UserError("toy.ratios: ratio × density must be 1 at most")
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
    """Exact."""
    W: Float[Tensor, "n_hidden n_features"]
    n: int
    """Restarts that ended there."""


def name_of(W: Float[Tensor, "n_hidden n_features"]) -> str:
    """Name the geometry: "pentagon" for all five around the plane, however stretched; else the factors, and who is dropped."""
    shape = geometry_report(W, **THRESHOLDS)
    last = W.shape[1] - 1
    if len(shape.factors) == 1 and len(shape.living) == last + 1 and shape.factors[0].rank == 2:
        return PENTAGON
    if shape.names == {"digon": 2}:
        return DIGONS if last not in shape.living else "two digons, another dropped"
    return " + ".join(f"{n} {name}" if n > 1 else name for name, n in sorted(shape.names.items()))


def optima(loss: Float[Tensor, "seed"], W: Float[Tensor, "seed n_hidden n_features"]) -> list[Optimum]:
    """Return the distinct ends of one ratio's restarts, the best first."""
    found: list[Optimum] = []
    for i in loss.argsort().tolist():
        name, value = name_of(W[i]), float(loss[i])
        for k, other in enumerate(found):
            if other.name == name and value - other.loss <= SAME * value:
                found[k] = other._replace(n=other.n + 1)
                break
        else:
            found.append(Optimum(name, value, W[i], 1))
    return found


def crossing(first: dict[float, float], second: dict[float, float]) -> tuple[float, float, float]:
    """Return (where two branches lose alike, the ratios below and above): linear between ratios that have both; NaN: nowhere."""
    both = sorted(first.keys() & second.keys())
    for a, b in pairwise(both):
        u, v = first[a] - second[a], first[b] - second[b]
        if u * v <= 0 and u != v:
            return a + (b - a) * u / (u - v), a, b
    return math.nan, math.nan, math.nan


def branch(found: dict[float, list[Optimum]], name: str) -> dict[float, float]:
    """Return ratio → the lowest loss of the optima of one geometry, for ratios that have any."""
    return {r: min(o.loss for o in at if o.name == name) for r, at in found.items() if any(o.name == name for o in at)}


def exact(density: Float[Tensor, "ratio n_features"], arranged: list[Parts]) -> list[list[Optimum]]:
    """Return the local optima that the arrangements lead to at each of the densities, polished on the exact loss."""
    density = density.double()
    starts = [start_of(parts, n_hidden=2, mean=p / 2) for p in density for parts in arranged]
    W, b = (torch.stack([start[i] for start in starts])[:, None] for i in (0, 1))
    W = W + SHAKE * torch.randn(W.shape, generator=torch.Generator().manual_seed(0), dtype=W.dtype)
    every = Program(
        name="exact",
        kind=Kind.relu_output,
        n_hidden=2,
        features=FeatureDistribution(Together.independent, 1, False),
        seeds=torch.zeros(len(W), dtype=torch.long),
        density=density.repeat_interleave(len(arranged), 0),
        importance=torch.ones(len(W), 1, density.shape[1]),
        points=None,
    )
    end = polish(every, Weights(W, b, None), **POLISH)
    by_ratio = (t.unflatten(0, (len(density), -1))[:, :, 0] for t in (end.loss, end.weights.W))
    return [optima(loss, W) for loss, W in zip(*by_ratio, strict=True)]


def result(toy: OneVariedFeature, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Compare all local optima against the ratio, and where pentagon and digons cross."""
    (it,) = trained
    ratios = toy.ratios
    end = polish(it.program, it.weights, **POLISH, compute=partial(compute_once, run.folder))
    loss, W = (t[:, 0].unflatten(0, (-1, toy.seeds)) for t in (end.loss, end.weights.W))
    found = {r: optima(loss[i], W[i]) for i, r in enumerate(ratios)}
    density = it.program.density[:: toy.seeds]
    alike = [0] * (toy.n_features - 1)
    best = [min(o.loss for o in at) for at in exact(density, structures([*alike, 1], 2))]

    at, low, high = crossing(branch(found, PENTAGON), branch(found, DIGONS))
    between = torch.linspace(low, high, 6).tolist()
    theory = math.nan
    if math.isfinite(at):
        near = density[:1].repeat(len(between), 1)
        near[:, -1] = toy.densities[0] * torch.tensor(between)
        exactly = dict(zip(between, exact(near, [(tuple(range(5)),), ((0, 1), (2, 3))]), strict=True))
        theory, _, _ = crossing(branch(exactly, PENTAGON), branch(exactly, DIGONS))
    as_trained = losses(it)[:, 0].unflatten(0, (-1, toy.seeds))
    unpolished = {
        r: [Optimum(name_of(W[i, j]), float(as_trained[i, j]), W[i, j], 1) for j in range(toy.seeds)]
        for i, r in enumerate(ratios)
    }
    as_paper, _, _ = crossing(branch(unpolished, PENTAGON), branch(unpolished, DIGONS))
    excess = max(float(loss[i].min()) / best[i] - 1 for i in range(len(ratios)))
    checks = [
        Check(
            "exact crossing of pentagon and digons, times sparser",
            1 / theory,
            EXACT_CROSSING - 0.05,
            EXACT_CROSSING + 0.05,
        ),
        Check("crossing of the trained, over the exact one", theory / at, 0.98, 1.02),
        Check("exact loss of the best restart, relative excess, at most", excess, -0.005, 0.005),
    ]
    metrics = {
        "crossing": 1 / at,
        "crossing_exact": 1 / theory,
        "crossing_unpolished": 1 / as_paper,
        "local_optima": sum(map(len, found.values())) / len(found),
        "unfinished": float((~end.converged).float().mean()),
    }
    shown = sorted({min(ratios, key=lambda r, w=w: abs(math.log(r / w))) for w in SHOWN})
    names = sorted({o.name for at in found.values() for o in at}, key=lambda name: min(branch(found, name).values()))
    best_W = {r: canonical(found[r][0].W.flip(1), living=THRESHOLDS["living"]).flip(1) for r in shown}
    figure = toy_crossing(
        {name: branch(found, name) for name in names},
        exact=dict(zip(ratios, best, strict=True)),
        crossing=at,
        density=toy.densities[0],
        shown={r: W.float().numpy() for r, W in best_W.items()},
    )
    arrays = {
        "W": W,
        "loss": loss,
        "loss_trained": as_trained,
        "exact_best": torch.tensor(best),
        "ratios": torch.tensor(ratios),
    }
    return Result(
        {k: v for k, v in metrics.items() if math.isfinite(v)}, checks, {"crossing": figure}, arrays, _table(found)
    )


def _table(found: dict[float, list[Optimum]]) -> str:
    rows = [[f"{r:.3g}", o.name, f"{o.loss:.6f}", o.n] for r, at in found.items() for o in at]
    return markdown_table(["density ratio", "local optimum", "exact loss", "restarts"], rows)


EXPERIMENT = ToyExperiment(OneVariedFeature, programs, result)
