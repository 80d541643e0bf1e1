"""The phase diagram of an extra feature over its relative importance and the density: dropped, in superposition, or dedicated.

Elhage et al. 2209.10652, "Superposition as a phase change": n = m + 1 features in m dimensions (2 → 1 and 3 → 2), the last one with
r times the importance of the others. Every trained instance is polished on the exact loss, without weight decay. The best
instance of a pixel determines its class, unless polishing a neighbour's optimum gives a lower loss. (With ten restarts, a basin that
one third of the starts lead to is missed in one of sixty pixels.) The boundary between the classes must be the exact one.
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
from crux.toy.exact.best import best_streams, instance_losses
from crux.toy.exact.neighbours import polish_from_neighbours
from crux.toy.exact.phase_theory import (
    Boundaries,
    classes_between_boundaries,
    exact_boundaries,
    fixed_weight_boundaries,
)
from crux.toy.exact.polish import PolishedInstances, polish
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import (
    build_program,
    feature_importances,
    split_into_tiles,
    uniform_densities,
)
from crux.toy.figures.phases import Diagram, Shares, plot_norm_and_superposition, plot_phase_diagrams
from crux.toy.geometry.dimensionality import norms, superposition
from crux.toy.options import PhaseDiagram
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import Weights

MIN_NORM = 0.1
"""A feature is represented if ‖W_i‖ is at least this. At an exact optimum, a feature that is not represented has norm 0; one that is
has at least 0.7 if features are sparse, and grows continuously from 0 at densities above 0.54.
"""

POLISH = {"gradient_tolerance": 1e-6, "max_iterations": 300}
"""Sufficient for losses of about p/3, because the losses of different classes differ by far more."""

MIN_LOSS_DIFFERENCE = 1e-5
"""Local optima of one pixel are distinct if their losses differ by more than this share."""


def build_programs(toy: PhaseDiagram, *, seed: int) -> list[Program]:
    """Build one instance per size, density, seed and ratio; the instances of one density and seed see the same data."""
    if toy.importance != 1:
        raise UserError(
            f"toy.importance={toy.importance}: must be 1 in a phase diagram, where toy.ratios varies the last feature"
        )
    programs = []
    for size in toy.model_sizes:
        if (size.n_features, size.n_hidden) not in ((2, 1), (3, 2)):
            raise UserError(
                f"toy.sizes: there is a theory for [2, 1, 1] and [3, 2, 1], not for {size.n_features} → {size.n_hidden}"
            )
        importance = feature_importances(toy, size.n_features).repeat(len(toy.ratios), 1)
        importance[:, -1] = torch.tensor(toy.ratios)
        density = uniform_densities(toy, size.n_features)
        program = build_program(
            toy, size, seed=seed, name=size.name, kind=toy.kind, density=density, importance=importance
        )
        programs += split_into_tiles(program, tile=toy.tile)
    return programs


class PolishedDiagram(NamedTuple):
    """The phase diagram of one size after polishing; a pixel is [density, ratio]."""

    classes: Int[Tensor, "density ratio"]
    """Class of the lowest optimum: 0 not represented, 1 in superposition, 2 a dedicated dimension."""
    loss: Float[Tensor, "density ratio"]
    """Exact loss of the lowest optimum."""
    own_classes: Int[Tensor, "density ratio"]
    """Class of the best of the pixel's trained instances, without the optima of its neighbours."""
    lowered: int
    """Number of pixels for which a neighbour's optimum was better."""
    n_optima: Int[Tensor, "density ratio"]
    """Number of distinct local optima among the pixel's instances."""
    unfinished: float
    """Share of the instances whose polishing did not reach the tolerance."""
    shares: Float[Tensor, "2 density ratio"]
    """As in the paper's figure: norm and superposition of the extra feature as trained, means over all instances except the worst."""


def classify_extra_feature(W: Float[Tensor, "*batch n_hidden n_features"]) -> Int[Tensor, "*batch"]:
    """Return the class of the last feature.

    0: it is not represented; 1: it shares its direction with a feature that is; 2: it has a dedicated dimension.
    """
    represented = norms(W)[..., -1] >= MIN_NORM
    shared = superposition(W)[..., -1] >= MIN_NORM**2  # the overlap with a feature of that norm
    return torch.where(represented, torch.where(shared, 1, 2), 0)


def polish_diagram(whole: TrainedProgram, run: ActiveRun, *, name: str, n_seeds: int) -> PolishedDiagram:
    """Polish all instances of one size and select the best one per pixel."""
    polished = polish(
        whole.program,
        whole.weights,
        **POLISH,
        compute=lambda part, compute: compute_once(run.folder, f"{name}_{part}", compute),
    )
    best = best_streams(polished.loss, n_seeds=n_seeds)
    settings = torch.arange(best.shape[1])
    by_seed = polished.loss.unflatten(0, (-1, n_seeds)).sort(1).values
    n_optima = 1 + (by_seed.diff(dim=1) > MIN_LOSS_DIFFERENCE * by_seed[:, 1:]).sum(1)

    W = whole.weights.W
    by_loss = instance_losses(whole).unflatten(0, (-1, n_seeds)).argsort(1)
    kept = by_loss[:, : max(1, n_seeds - 1)]  # as in the paper, without the worst seed
    shares = torch.stack([norms(W)[..., -1], superposition(W)[..., -1]]).unflatten(1, (-1, n_seeds))
    shares = shares.gather(2, kept.expand(2, *kept.shape)).mean(2)
    own = PolishedInstances(
        Weights(polished.weights.W[best, settings], polished.weights.b[best, settings], None),
        polished.loss[best, settings],
        polished.converged[best, settings],
    )
    one_per_density = slice(None, None, n_seeds)  # the streams are ordered by density, then by seed
    pixels = whole.program._replace(
        seeds=whole.program.seeds[one_per_density],
        density=whole.program.density[one_per_density],
        importance=whole.program.importance[one_per_density],
    )
    lowest, lowered = polish_from_neighbours(pixels, own, classify=classify_extra_feature, **POLISH)
    return PolishedDiagram(
        classify_extra_feature(lowest.weights.W),
        lowest.loss,
        classify_extra_feature(own.weights.W),
        lowered,
        n_optima,
        float((~polished.converged).float().mean()),
        shares,
    )


def pixels_from_boundary(
    classes: Int[Tensor, "density ratio"], boundaries: Boundaries, ratios: Float[Tensor, "ratio"]
) -> Float[Tensor, "density ratio"]:
    """Return each pixel's distance, in pixels, from the ratios at which its class is correct at its density; 0 if it is correct."""
    logs, step = ratios.double().log(), math.log(ratios[1] / ratios[0])
    lower, upper = (boundary.double().log()[:, None] for boundary in boundaries)
    low = torch.where(classes == 0, -torch.inf, torch.where(classes == 1, lower, upper))
    high = torch.where(classes == 0, lower, torch.where(classes == 1, upper, torch.inf))
    return torch.maximum(low - logs, logs - high).clamp(min=0) / step


def result(toy: PhaseDiagram, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Compare the diagrams with the theory."""
    ratios, densities = torch.tensor(toy.ratios), torch.tensor(toy.densities, dtype=torch.float64)
    diagrams, shares, checks, arrays, metrics, lines = [], [], [], {}, {}, []
    by_size = {name: list(parts) for name, parts in groupby(trained, lambda tile: _name_size(tile.program))}
    for size in toy.model_sizes:
        name, title = size.name, f"{size.n_features} features in {size.n_hidden} dimension{'s' * (size.n_hidden > 1)}"
        diagram = polish_diagram(join_tiles(by_size[name]), run, name=name, n_seeds=toy.seeds)
        exact = exact_boundaries(densities, n_hidden=size.n_hidden)
        fixed = fixed_weight_boundaries(densities, n_hidden=size.n_hidden)
        distance = pixels_from_boundary(diagram.classes, exact, ratios)
        checks.append(
            Check(f"{title}: largest distance from the exact boundary, in pixels", float(distance.max()), 0, 1)
        )
        metrics |= {
            f"pixels_off/{name}": float((distance > 0).sum()),
            f"pixels_off_without_neighbours/{name}": float(
                (pixels_from_boundary(diagram.own_classes, exact, ratios) > 0).sum()
            ),
            f"lowered_by_neighbours/{name}": float(diagram.lowered),
            f"pixels_off_fixed_weights/{name}": float((pixels_from_boundary(diagram.classes, fixed, ratios) > 0).sum()),
            f"local_optima/{name}": float(diagram.n_optima.double().mean()),
            f"unfinished/{name}": diagram.unfinished,
        }
        diagrams.append(
            Diagram(
                title,
                diagram.classes.numpy(),
                classes_between_boundaries(ratios.double(), fixed).numpy(),
                classes_between_boundaries(ratios.double(), exact).numpy(),
                torch.stack(list(fixed)).numpy(),
                torch.stack(list(exact)).numpy(),
            )
        )
        shares.append(Shares(title, *diagram.shares.float().numpy()))
        arrays |= {f"{name}/{key}": value for key, value in diagram._asdict().items() if isinstance(value, Tensor)}
        arrays |= {f"{name}/exact": torch.stack(list(exact)), f"{name}/fixed_weights": torch.stack(list(fixed))}
        lines.append(_build_table(title, toy, diagram.classes, exact, fixed))
    axes = {"densities": densities.numpy(), "ratios": ratios.double().numpy()}
    figures = {
        "phases": plot_phase_diagrams(diagrams, **axes),
        "norm_and_superposition": plot_norm_and_superposition(shares, **axes),
    }
    return Result(metrics, checks, figures, arrays | {"ratios": ratios, "densities": densities}, "\n\n".join(lines))


def _build_table(title: str, toy: PhaseDiagram, classes: Tensor, exact: Boundaries, fixed: Boundaries) -> str:
    """Return a table of the ratio above which the feature is represented, at every density."""
    rows, ratios = [], [0.0, *toy.ratios, math.inf]
    for i, density in enumerate(toy.densities):
        n_dropped = int(
            (classes[i] == 0).sum()
        )  # the classes ascend with the ratio: these are the pixels below the boundary
        interval = f"{ratios[n_dropped]:.3g} … {ratios[n_dropped + 1]:.3g}"
        rows.append([f"{density:.3g}", interval, f"{exact.lower[i]:.4g}", f"{fixed.lower[i]:.4g}"])
    table = markdown_table(["density", "trained", "exact", "fixed weights"], rows)
    return f"{title}: r above which the extra feature is represented\n\n{table}"


def _name_size(program: Program) -> str:
    """Return the name that `Size.name` gives to the size of the program's models."""
    return f"{program.n_features}_{program.n_hidden}"


EXPERIMENT = ToyExperiment(PhaseDiagram, build_programs, result)
