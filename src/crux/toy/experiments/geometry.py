"""The dimensions per feature D* against sparsity, with plateaus at 1 and 1/2, and the fractions at which single features cluster.

Elhage et al. 2209.10652, "The Geometry of Superposition": many features of equal importance; D* = n_hidden / ‖W‖_F² and
each feature's dimensionality D_i.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, split_into_tiles
from crux.toy.figures.dimensionality import plot_dimensionality
from crux.toy.figures.fractions import FRACTIONS
from crux.toy.geometry.dimensionality import column_rank, dimensionality, dimensions_per_feature, norms
from crux.toy.options import Tiled
from crux.toy.program import Program, TrainedProgram

MIN_NORM = 0.5
"""A feature is represented if its norm is above this value, half-way between 0 and 1."""

FRACTION_TOLERANCE = 0.02
"""A dimensionality is at a fraction if it is within this distance of it."""

SMOOTHING_HALF_WIDTH = 0.1
"""Half-width over which each dimensionality is spread for the comparison with a smooth density."""

RANK_TOLERANCE = 1e-4
"""Tolerance of Σ D_i ≤ rank, for rounding in float32."""

ALL_FRACTIONS = [fraction for fraction, _ in FRACTIONS.values()]
"""The dimensionalities of the known shapes, at which features cluster."""

PLATEAU, PLATEAU_TOLERANCE = 0.5, 0.03
"""D* is on its plateau if it is within PLATEAU_TOLERANCE of PLATEAU."""


def build_programs(toy: Tiled, *, seed: int) -> list[Program]:
    """Build one instance per density and seed."""
    return split_into_tiles(build_model_program(toy, seed=seed), tile=toy.tile)


def share_near(D: Float[Tensor, "features"], fractions: Sequence[float]) -> float:
    """Return the share of the dimensionalities within FRACTION_TOLERANCE of one of the fractions."""
    if not len(D):
        return 0.0
    return float(((D[:, None] - torch.tensor(fractions).to(D)).abs() <= FRACTION_TOLERANCE).any(-1).double().mean())


def smooth_share_near(D: Float[Tensor, "features"], fractions: Sequence[float]) -> float:
    """Return the share of `share_near` that a smooth density of dimensionalities would give.

    Each dimensionality is spread evenly over ± SMOOTHING_HALF_WIDTH, but not above 1.
    """
    if not len(D):
        return 0.0
    low, high = D - SMOOTHING_HALF_WIDTH, (D + SMOOTHING_HALF_WIDTH).clamp(max=1)
    covered = torch.zeros_like(D)
    end = 0.0
    for fraction in sorted(fractions):
        start, end = (
            max(end, fraction - FRACTION_TOLERANCE),
            min(1.0, fraction + FRACTION_TOLERANCE),
        )  # overlapping bands count once
        covered += (high.clamp(max=end) - low.clamp(min=start)).clamp(min=0)
    return float((covered / (high - low)).double().mean())


def plateau_width(densities: Sequence[float], d_star: Float[Tensor, "densities"]) -> float:
    """Return the factor by which the density changes while D* stays on its plateau at 1/2.

    The longest run of neighbouring densities counts; 1 if it is a single density, 0 if there is none.
    """
    widest, start = 0.0, None  # `start` is the lowest density of the current run; None outside of a run
    for i in sorted(range(len(densities)), key=lambda i: densities[i]):
        if abs(float(d_star[i]) - PLATEAU) > PLATEAU_TOLERANCE:
            start = None
            continue
        start = densities[i] if start is None else start
        widest = max(widest, densities[i] / start)
    return widest


def result(toy: Tiled, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure D* and every D_i, check Σ D_i ≤ rank, and test whether D_i clusters at the fractions."""
    W = torch.cat([part.weights.W[:, 0] for part in trained])
    loss = torch.cat([part.loss[:, 0] for part in trained])
    density = torch.tensor(toy.densities).repeat_interleave(toy.seeds)
    D, d_star, rank = dimensionality(W), dimensions_per_feature(W), column_rank(W)
    means = d_star.unflatten(0, (-1, toy.seeds)).mean(1)
    violation = (D.double().sum(-1) - rank).max()
    superposed = D[(norms(W) > MIN_NORM) & (density[:, None] < 1)]
    at_fractions, if_smooth = share_near(superposed, ALL_FRACTIONS), smooth_share_near(superposed, ALL_FRACTIONS)
    checks = [
        Check("largest Σ D_i − rank W", float(violation), -toy.n_hidden, RANK_TOLERANCE),
        Check("largest rank W", float(rank.max()), 1, toy.n_hidden),
        Check("D* at the highest density", float(means[density[:: toy.seeds].argmax()]), 0.9, 1.1),
        Check("factor of densities with D* = 1/2 ± 0.03", plateau_width(toy.densities, means), 1.2, 100),
        Check(
            "features at a fraction / the same if D_i had a smooth density",
            at_fractions / if_smooth if if_smooth else 0.0,
            1.5,
            100,
        ),
    ]
    metrics = {"at_fractions": at_fractions, "at_fractions_if_smooth": if_smooth}
    description = (
        f"{len(superposed)} represented features (norm above {MIN_NORM}) at densities below 1; {at_fractions:.1%} are within "
        f"{FRACTION_TOLERANCE} of a fraction, {if_smooth:.1%} if each D_i is spread over ± {SMOOTHING_HALF_WIDTH}"
    )
    fractions, densities = [], []
    for name, (fraction, _) in FRACTIONS.items():
        share, share_if_smooth = share_near(superposed, [fraction]), smooth_share_near(superposed, [fraction])
        shape_name = name.split("  ")[0]  # the name in the figure is "<shape>  <fraction>"
        metrics[f"at/{shape_name.replace(' ', '_')}"] = share
        largest_share, its_sparsity = max(
            (share_near(D[i][norms(W[i]) > MIN_NORM], [fraction]), 1 / float(density[i])) for i in range(len(density))
        )
        fractions.append(
            [name, f"{share:.1%}", f"{share_if_smooth:.1%}", f"{largest_share:.0%}", f"{its_sparsity:.3g}"]
        )
    for i, p in enumerate(density.tolist()):
        represented = norms(W[i]) > MIN_NORM
        share = share_near(D[i][represented], ALL_FRACTIONS)
        dimensions, total = f"{d_star[i]:.3f}", f"{D[i].sum():.2f}"
        densities.append([f"{1 / p:.3g}", dimensions, int(represented.sum()), total, f"{share:.0%}", f"{loss[i]:.4f}"])
    tables = [
        markdown_table(
            ["fraction", "features", "features if D_i had a smooth density", "most at one density", "its 1/(1−S)"],
            fractions,
        ),
        markdown_table(["1/(1−S)", "D*", "represented", "Σ D_i", "at a fraction", "loss"], densities),
    ]
    figure = plot_dimensionality(
        densities=density.numpy(), dimensions_per_feature=d_star.numpy(), dimensionality=D.numpy()
    )
    arrays = {
        "density": density,
        "dimensions_per_feature": d_star,
        "dimensionality": D,
        "norms": norms(W),
        "loss": loss,
    }
    return Result(metrics, checks, {"dimensionality": figure}, arrays, "\n\n".join([description, *tables]))


EXPERIMENT = ToyExperiment(Tiled, build_programs, result)
