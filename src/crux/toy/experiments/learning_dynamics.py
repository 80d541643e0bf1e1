"""Learning in jumps: each feature's dimensionality beside the loss; and the shapes that correlated features pass through.

Elhage et al. 2209.10652, "Superposition and Learning Dynamics". Phenomenon 1: in a model that ends in digons, features jump from one
dimensionality to another, and the loss drops. Phenomenon 2: two sets of three correlated features in three dimensions first part
as sets, then open into triangles, and end as an octahedron; each change is a kink in the loss.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import instance, losses
from crux.toy.exact.population import has_population_loss, population_loss
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.dynamics import toy_dynamics
from crux.toy.figures.stages import toy_stages
from crux.toy.geometry.dimensionality import dimensionality, norms, unit_columns
from crux.toy.geometry.jumps import abruptness, at_once, drops
from crux.toy.geometry.report import THRESHOLDS, canonical, geometry_report
from crux.toy.options import Kind, OneSize, Together
from crux.toy.program import Program, Trained, held_out_loss

REPRESENTED = 0.5
"""A feature is, from this share of the largest norm on: half-way between none and the whole."""

NEAR = 0.02
"""A dimensionality within this of 1/2 is that of a digon."""

CLOSE = 0.005
"""Seeds whose losses differ by less, of it, have ended equally well."""

WINDOW = 0.1
"""Of the training: a jump is what happens within it."""


def programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build instances of one density, one per seed, whose weights are kept along the way."""
    if toy.kind is not Kind.relu_output or len(toy.densities) != 1:
        raise UserError("experiment=toy/learning_dynamics watches toy.kind=relu_output at one density")
    if toy.snapshots < 20:
        raise UserError(f"toy.snapshots={toy.snapshots}: experiment=toy/learning_dynamics needs 20 or more")
    return [build_model_program(toy, seed=seed)]


def losses_on_the_way(trained: Trained, *, samples: int) -> Float[Tensor, "points seed"]:
    """Return the loss of every snapshot: exact if possible, else on the same held-out samples for all."""
    exact = has_population_loss(trained.program)
    found = [
        population_loss(trained.program, weights)
        if exact
        else held_out_loss(trained.program, weights, samples=samples, batch=min(samples, 1024))
        for weights in trained.snapshots.values()
    ]
    return torch.stack(found)[..., 0]


def within_sets(W: Float[Tensor, "m n"], *, n_sets: int) -> float:
    """Return the mean cosine of features of one set."""
    directions = unit_columns(W).unflatten(-1, (n_sets, -1))
    size = directions.shape[-1]
    products = torch.einsum("msi,msj->sij", directions, directions)
    return float((products.sum((1, 2)) - size).mean() / (size * (size - 1)))


def between_sets(W: Float[Tensor, "m n"], *, n_sets: int) -> float:
    """Return the mean cosine of features of different sets."""
    directions = unit_columns(W).unflatten(-1, (n_sets, -1)).sum(-1)
    products = directions.T @ directions
    size = W.shape[-1] // n_sets
    return float((products.sum() - products.trace()) / (size**2 * n_sets * (n_sets - 1)))


def choose_seed(loss: Float[Tensor, "seed"], n_drops: Sequence[int]) -> int:
    """Choose, of the seeds that ended as well as the best up to CLOSE, the one whose loss dropped most often; of several, the best."""
    good = [i for i, value in enumerate(loss.tolist()) if value <= (1 + CLOSE) * float(loss.min())]
    return max(good, key=lambda i: (n_drops[i], -float(loss[i])))


def result(toy: OneSize, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Describe one seed's dimensionalities and loss over the training, where it ended, and how abruptly."""
    (found,) = trained
    steps = list(found.snapshots)
    path = losses_on_the_way(found, samples=toy.held_out)
    several = [len(drops(column).steepest) for column in path.T]
    shown = choose_seed(losses(found)[:, 0], several)
    W = torch.stack([instance(weights, shown, 0).W for weights in found.snapshots.values()])
    D, loss, falls = dimensionality(W), path[:, shown], drops(path[:, shown])
    length = norms(W[-1])
    living = length > REPRESENTED * length.max()
    shape = geometry_report(W[-1][:, living], **THRESHOLDS)
    paired = sum(len(factor.features) for factor in shape.factors if factor.name == "digon")
    window = round(WINDOW * (len(steps) - 1))
    jump, steep = at_once(D[:, living], window=window), abruptness(D[:, living])
    checks = [
        Check("share of represented features in digons at the end", paired / max(1, int(living.sum())), 0.8, 1),
        Check(f"share of them with D within {NEAR} of 1/2", float(((D[-1][living] - 0.5).abs() <= NEAR).double().mean()), 0.8, 1),
        Check(f"share of its range that a feature covers within {WINDOW:.0%} of the steps (median)", float(jump.median()), 0.3, 1),
        Check("a feature's largest change between snapshots, by its median change (median)", float(steep.median()), 5, 1e9),
        Check("distinct drops of the loss, of the seed with the fewest", min(several), 2, 100),
    ]  # fmt: skip
    lines = [
        f"seed {run.seed + shown} of {toy.seeds} is shown; distinct drops of the loss of each: {', '.join(map(str, several))}",
        "steepest at step " + ", ".join(f"{steps[i]} (loss {loss[i]:.4g})" for i in falls.steepest),
        "",
        "represented features at the end:",
        str(shape),
    ]
    figures = {
        "dynamics": toy_dynamics(
            steps=torch.tensor(steps).numpy(),
            dimensionality=D.numpy(),
            loss_steps=torch.tensor(steps).numpy(),
            loss=loss.double().numpy(),
        )
    }
    arrays = {"steps": torch.tensor(steps), "dimensionality": D, "loss": path, "W": W}
    metrics = {"drops": float(len(falls.steepest)), "at_once": float(jump.median()), "represented": float(living.sum())}
    if toy.together is Together.correlated and toy.n_hidden == 3:
        within, between = ([of(w, n_sets=toy.n_sets) for w in W] for of in (within_sets, between_sets))
        ends = [shape_of(weights.T) for weights in found.weights.W[:, 0].mT]
        octahedra = sum(end == {"digon": 3} for end in ends)
        checks += [
            Check(
                "sets part: largest difference of mean cosines within a set and between",
                max(map(float.__sub__, within, between)),
                0.9,
                2,
            ),
            Check("octahedron at the end: three orthogonal digons", float(shape.names == {"digon": 3}), 1, 1),
            Check("octahedron at the end: cosine within a set", within[-1], -0.05, 0.05),
            Check("octahedron at the end: cosine between sets (−1/3)", between[-1], -0.38, -0.28),
        ]
        checks.append(Check("share of the seeds that end as an octahedron", octahedra / toy.seeds, 0.5, 1))
        metrics["octahedra"] = float(octahedra)
        lines.insert(1, f"octahedra at the end: {octahedra} of {toy.seeds} seeds")
        stages = [0, *falls.between, len(steps) - 1]
        figures["stages"] = toy_stages(
            weights=torch.stack([canonical(W[i], living=THRESHOLDS["living"]) for i in stages]).numpy(),
            stages=torch.tensor(steps)[stages].numpy(),
            sets=(torch.arange(toy.n_features) // (toy.n_features // toy.n_sets)).numpy(),
            steps=torch.tensor(steps).numpy(),
            loss=loss.double().numpy(),
            titles=[f"cosine within sets {within[i]:.2f}\nbetween sets {between[i]:.2f}" for i in stages],
        )
    return Result(metrics, checks, figures, arrays, "\n".join(lines))


def shape_of(W: Float[Tensor, "m n"]) -> dict[str, int]:
    """Name of a shape → how many there are."""
    return geometry_report(W, **THRESHOLDS).names


EXPERIMENT = ToyExperiment(OneSize, programs, result)
