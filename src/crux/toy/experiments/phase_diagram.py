"""What an extra feature is given, by its relative importance and the density: nothing, a share of a dimension, or one of its own.

Elhage et al. 2209.10652, "Superposition as a phase change": n = m + 1 features in m dimensions, the last one's importance r
times the others', two → one and three → two. Every trained instance is polished on the exact loss (no weight decay); of a
pixel's instances the best says its class, unless a neighbour's optimum, polished here, is lower still (ten restarts miss a basin that
one of three falls in once in sixty pixels); the border between classes must be the exact one.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.compare import join_tiles
from crux.toy.exact.best import best_of_seeds, losses
from crux.toy.exact.neighbours import lowered_by_neighbours
from crux.toy.exact.phase_theory import Boundaries, exact_boundaries, extra_feature_class, fixed_weight_boundaries
from crux.toy.exact.polish import Polished, polish
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import (
    build_program,
    feature_importances,
    split_into_tiles,
    uniform_densities,
)
from crux.toy.figures.phases import Diagram, Shares, toy_phases, toy_shares
from crux.toy.geometry.dimensionality import norms, superposition
from crux.toy.options import PhaseDiagram
from crux.toy.program import Program, Trained
from crux.toy.superposition import Weights

REPRESENTED = 0.1
"""‖W_i‖ from which a feature counts as represented. At an exact optimum one that is not has 0; one that is has .7 or more where the
features are sparse, and rises from 0 where they are denser than 0.54."""

POLISH = {"gradient_tolerance": 1e-6, "max_iterations": 300}
"""Of a loss that is p/3 or so: the classes are told apart by far more."""

DISTINCT = 1e-5
"""Local optima of one pixel whose losses differ by more (relative) are two."""


def programs(toy: PhaseDiagram, *, seed: int) -> list[Program]:
    """Build, for each size, an instance for every density, seed and ratio; those of one density and seed see the same data."""
    if toy.importance != 1:
        raise UserError(
            f"toy.importance={toy.importance}: the others' is 1 in a phase diagram, toy.ratios varies the last"
        )
    made = []
    for size in toy.model_sizes:
        if (size.n_features, size.n_hidden) not in ((2, 1), (3, 2)):
            raise UserError(
                f"toy.sizes: the theory is known for [2, 1, 1] and [3, 2, 1], not for {size.n_features} → {size.n_hidden}"
            )
        importance = feature_importances(toy, size.n_features).repeat(len(toy.ratios), 1)
        importance[:, -1] = torch.tensor(toy.ratios)
        density = uniform_densities(toy, size.n_features)
        program = build_program(
            toy, size, seed=seed, name=size.name, kind=toy.kind, density=density, importance=importance
        )
        made += split_into_tiles(program, tile=toy.tile)
    return made


class Found(NamedTuple):
    """One size's diagram; pixels are [density, ratio]."""

    classes: Int[Tensor, "density ratio"]
    """Of the lowest optimum: 0 not represented, 1 in superposition, 2 own dimension."""
    loss: Float[Tensor, "density ratio"]
    """Its exact loss."""
    own_classes: Int[Tensor, "density ratio"]
    """Of the best of the pixel's own instances, before its neighbours' optima were tried."""
    lowered: int
    """Pixels whose neighbours had a lower one."""
    n_optima: Int[Tensor, "density ratio"]
    """Distinct local optima among the pixel's instances."""
    unfinished: float
    """Share of the instances whose polishing ended above the tolerance."""
    shares: Float[Tensor, "2 density ratio"]
    """The paper's picture: norm and superposition of the extra feature as trained, means over all instances but the worst."""


def extra_class(W: Float[Tensor, "*batch n_hidden n_features"]) -> Int[Tensor, "*batch"]:
    """Return 0: the last feature is not represented; 1: it shares its direction with one that is; 2: it has a dimension of its own."""
    represented = norms(W)[..., -1] >= REPRESENTED
    shared = superposition(W)[..., -1] >= REPRESENTED**2  # what another one of that norm leaves on its line
    return torch.where(represented, torch.where(shared, 1, 2), 0)


def polish_diagram(whole: Trained, run: ActiveRun, *, name: str, n_seeds: int) -> Found:
    """Polish all instances of one size and take the best of each pixel."""
    result = polish(
        whole.program,
        whole.weights,
        **POLISH,
        compute=lambda part, compute: compute_once(run.folder, f"{name}_{part}", compute),
    )
    best = best_of_seeds(result.loss, n_seeds=n_seeds)
    every = torch.arange(best.shape[1])
    by_seed = result.loss.unflatten(0, (-1, n_seeds)).sort(1).values
    n_optima = 1 + (by_seed.diff(dim=1) > DISTINCT * by_seed[:, 1:]).sum(1)

    W, kept = whole.weights.W, losses(whole).unflatten(0, (-1, n_seeds)).argsort(1)
    kept = kept[:, : max(1, n_seeds - 1)]
    shares = torch.stack([norms(W)[..., -1], superposition(W)[..., -1]]).unflatten(1, (-1, n_seeds))
    shares = shares.gather(2, kept.expand(2, *kept.shape)).mean(2)
    own = Polished(
        Weights(result.weights.W[best, every], result.weights.b[best, every], None),
        result.loss[best, every],
        result.converged[best, every],
    )
    a_density_each = slice(None, None, n_seeds)  # seeds run fastest
    pixels = whole.program._replace(
        seeds=whole.program.seeds[a_density_each],
        density=whole.program.density[a_density_each],
        importance=whole.program.importance[a_density_each],
    )
    lowest, lowered = lowered_by_neighbours(pixels, own, classes=extra_class, **POLISH)
    return Found(
        extra_class(lowest.weights.W),
        lowest.loss,
        extra_class(own.weights.W),
        lowered,
        n_optima,
        float((~result.converged).float().mean()),
        shares,
    )


def deviation(
    classes: Int[Tensor, "density ratio"], boundaries: Boundaries, ratios: Float[Tensor, "ratio"]
) -> Float[Tensor, "density ratio"]:
    """Return how many pixels each pixel is away from the ratios at which its class is the right one, at its density; 0: it is right."""
    logs, step = ratios.double().log(), math.log(ratios[1] / ratios[0])
    lower, upper = (edge.double().log()[:, None] for edge in boundaries)
    low = torch.where(classes == 0, -torch.inf, torch.where(classes == 1, lower, upper))
    high = torch.where(classes == 0, lower, torch.where(classes == 1, upper, torch.inf))
    return torch.maximum(low - logs, logs - high).clamp(min=0) / step


def result(toy: PhaseDiagram, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Compare the diagrams with theory."""
    ratios, densities = torch.tensor(toy.ratios), torch.tensor(toy.densities, dtype=torch.float64)
    diagrams, shares, checks, arrays, metrics, lines = [], [], [], {}, {}, []
    by_size = {name: list(parts) for name, parts in groupby(trained, lambda t: _size_of(t.program))}
    for size in toy.model_sizes:
        name, title = size.name, f"{size.n_features} features in {size.n_hidden} dimension{'s' * (size.n_hidden > 1)}"
        it = polish_diagram(join_tiles(by_size[name]), run, name=name, n_seeds=toy.seeds)
        exact, fixed = (f(densities, n_hidden=size.n_hidden) for f in (exact_boundaries, fixed_weight_boundaries))
        off = deviation(it.classes, exact, ratios)
        checks.append(
            Check(f"{title}: pixels between the border found and the exact one, the most", float(off.max()), 0, 1)
        )
        metrics |= {
            f"pixels_off/{name}": float((off > 0).sum()),
            f"pixels_off_without_neighbours/{name}": float((deviation(it.own_classes, exact, ratios) > 0).sum()),
            f"lowered_by_neighbours/{name}": float(it.lowered),
            f"pixels_off_fixed_weights/{name}": float((deviation(it.classes, fixed, ratios) > 0).sum()),
            f"local_optima/{name}": float(it.n_optima.double().mean()),
            f"unfinished/{name}": it.unfinished,
        }
        diagrams.append(
            Diagram(
                title,
                it.classes.numpy(),
                extra_feature_class(ratios.double(), fixed).numpy(),
                extra_feature_class(ratios.double(), exact).numpy(),
                torch.stack(list(fixed)).numpy(),
                torch.stack(list(exact)).numpy(),
            )
        )
        shares.append(Shares(title, *it.shares.float().numpy()))
        arrays |= {f"{name}/{key}": value for key, value in it._asdict().items() if isinstance(value, Tensor)}
        arrays |= {f"{name}/exact": torch.stack(list(exact)), f"{name}/fixed_weights": torch.stack(list(fixed))}
        lines.append(_table(title, toy, it.classes, exact, fixed))
    axes = {"densities": densities.numpy(), "ratios": ratios.double().numpy()}
    figures = {"phases": toy_phases(diagrams, **axes), "norm_and_superposition": toy_shares(shares, **axes)}
    return Result(metrics, checks, figures, arrays | {"ratios": ratios, "densities": densities}, "\n\n".join(lines))


def _table(title: str, toy: PhaseDiagram, classes: Tensor, exact: Boundaries, fixed: Boundaries) -> str:
    """Tabulate from which ratio on the feature is represented, at every density."""
    rows, ratios = [], [0.0, *toy.ratios, math.inf]
    for i, density in enumerate(toy.densities):
        n = int((classes[i] == 0).sum())
        found = f"{ratios[n]:.3g} … {ratios[n + 1]:.3g}"
        rows.append([f"{density:.3g}", found, f"{exact.lower[i]:.4g}", f"{fixed.lower[i]:.4g}"])
    table = markdown_table(["density", "found", "exact", "fixed weights"], rows)
    return f"{title}: the extra feature is represented from r on\n\n{table}"


def _size_of(program: Program) -> str:
    return f"{program.n_features}_{program.n_hidden}"


EXPERIMENT = ToyExperiment(PhaseDiagram, programs, result)
