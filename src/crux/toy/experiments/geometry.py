"""How many dimensions a feature gets: D* against sparsity, sticky at 1 and 1/2, and the fractions that features cluster at.

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
from crux.toy.figures.dimensionality import toy_dimensionality
from crux.toy.figures.fractions import FRACTIONS
from crux.toy.geometry.dimensionality import dimensionality, dimensions_per_feature, norms, rank
from crux.toy.options import Tiled
from crux.toy.program import Program, Trained

REPRESENTED = 0.5
"""A feature is, from this norm on: half-way between none and the whole."""

NEAR = 0.02
"""A dimensionality within this of a fraction is at it."""

SMOOTHING = 0.1
"""A smooth density has what is found spread evenly over this much to either side."""

LAW = 1e-4
"""By how much rounding in float32 may break Σ D_i ≤ rank."""

STICKY = [fraction for fraction, _ in FRACTIONS.values()]

HALF, FLAT = 0.5, 0.03
"""D* is on its plateau within FLAT of HALF."""


def programs(toy: Tiled, *, seed: int) -> list[Program]:
    """Build one instance for each density and seed."""
    return split_into_tiles(build_model_program(toy, seed=seed), tile=toy.tile)


def share_at(D: Float[Tensor, "features"], fractions: Sequence[float]) -> float:
    """Return the share of the dimensionalities within NEAR of one of the fractions."""
    if not len(D):
        return 0.0
    return float(((D[:, None] - torch.tensor(fractions).to(D)).abs() <= NEAR).any(-1).double().mean())


def share_if_smooth(D: Float[Tensor, "features"], fractions: Sequence[float]) -> float:
    """Return what `share_at` would be if the dimensionalities had a smooth density.

    Each is spread evenly over ± SMOOTHING (up to 1, where they end).
    """
    if not len(D):
        return 0.0
    low, high = D - SMOOTHING, (D + SMOOTHING).clamp(max=1)
    covered = torch.zeros_like(D)
    end = 0.0
    for fraction in sorted(fractions):
        start, end = max(end, fraction - NEAR), min(1.0, fraction + NEAR)  # overlapping bands count once
        covered += (high.clamp(max=end) - low.clamp(min=start)).clamp(min=0)
    return float((covered / (high - low)).double().mean())


def plateau(densities: Sequence[float], spread: Float[Tensor, "densities"]) -> float:
    """Return by what factor the density changes while D* stays on its plateau at 1/2.

    The longest run of neighbours; 1 if it is a single density, 0 if there is none.
    """
    order = sorted(range(len(densities)), key=lambda i: densities[i])
    longest, first = 0.0, None
    for i in order:
        on = abs(float(spread[i]) - HALF) <= FLAT
        first = (first if first is not None else densities[i]) if on else None
        longest = max(longest, densities[i] / first if first is not None else 0)
    return longest


def result(toy: Tiled, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure D* and every D_i, check their law, and whether they stick to the fractions."""
    W = torch.cat([part.weights.W[:, 0] for part in trained])
    loss = torch.cat([part.loss[:, 0] for part in trained])
    density = torch.tensor(toy.densities).repeat_interleave(toy.seeds)
    D, spread, spanned = dimensionality(W), dimensions_per_feature(W), rank(W)
    means = spread.unflatten(0, (-1, toy.seeds)).mean(1)
    unlawful = (D.double().sum(-1) - spanned).max()
    superposed = D[(norms(W) > REPRESENTED) & (density[:, None] < 1)]
    found, smooth = share_at(superposed, STICKY), share_if_smooth(superposed, STICKY)
    checks = [
        Check("largest Σ D_i − rank W", float(unlawful), -toy.n_hidden, LAW),
        Check("largest rank W", float(spanned.max()), 1, toy.n_hidden),
        Check("D* at the highest density", float(means[density[:: toy.seeds].argmax()]), 0.9, 1.1),
        Check("density changes by this factor while D* = 1/2 ± 0.03", plateau(toy.densities, means), 1.2, 100),
        Check("features at a fraction, by what a smooth density gives", found / smooth if smooth else 0.0, 1.5, 100),
    ]
    metrics = {"at_fractions": found, "at_fractions_if_smooth": smooth}
    about = (
        f"{len(superposed)} represented features (norm above {REPRESENTED}) where density < 1; within {NEAR} of a fraction "
        f"{found:.1%}, {smooth:.1%} if each D_i is spread over ± {SMOOTHING}"
    )
    fractions, densities = [], []
    for name, (fraction, _) in FRACTIONS.items():
        one, other = share_at(superposed, [fraction]), share_if_smooth(superposed, [fraction])
        metrics[f"at/{name.split('  ')[0].replace(' ', '_')}"] = one
        most, where = max(
            (share_at(D[i][norms(W[i]) > REPRESENTED], [fraction]), 1 / float(density[i])) for i in range(len(density))
        )
        fractions.append([name, f"{one:.1%}", f"{other:.1%}", f"{most:.0%}", f"{where:.3g}"])
    for i, p in enumerate(density.tolist()):
        alive = norms(W[i]) > REPRESENTED
        share = share_at(D[i][alive], STICKY)
        dimensions, total = f"{spread[i]:.3f}", f"{D[i].sum():.2f}"
        densities.append([f"{1 / p:.3g}", dimensions, int(alive.sum()), total, f"{share:.0%}", f"{loss[i]:.4f}"])
    tables = [
        markdown_table(["fraction", "found", "if smooth", "most at one density", "where 1/(1−S) is"], fractions),
        markdown_table(["1/(1−S)", "D*", "represented", "Σ D_i", "at a fraction", "loss"], densities),
    ]
    figure = toy_dimensionality(
        densities=density.numpy(), dimensions_per_feature=spread.numpy(), dimensionality=D.numpy()
    )
    arrays = {
        "density": density,
        "dimensions_per_feature": spread,
        "dimensionality": D,
        "norms": norms(W),
        "loss": loss,
    }
    return Result(metrics, checks, {"dimensionality": figure}, arrays, "\n\n".join([about, *tables]))


EXPERIMENT = ToyExperiment(Tiled, programs, result)
