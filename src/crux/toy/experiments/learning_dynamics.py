"""Learning in jumps: each feature's dimensionality and the loss during training, and the shapes that correlated features pass through.

Elhage et al. 2209.10652, "Superposition and Learning Dynamics". Phenomenon 1: in a model that ends in digons, features jump from one
dimensionality to another while the loss drops. Phenomenon 2: two sets of three correlated features in three dimensions first separate
as sets, then open into triangles, and finally form an octahedron; each change is a kink in the loss.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import instance_losses, select_instance
from crux.toy.exact.population import has_population_loss, population_loss
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.dynamics import plot_learning_dynamics
from crux.toy.figures.stages import plot_stages
from crux.toy.geometry.dimensionality import dimensionality, norms, unit_columns
from crux.toy.geometry.jumps import abruptness, find_drops, largest_jump
from crux.toy.geometry.report import THRESHOLDS, geometry_report, orient_canonically
from crux.toy.options import Cooccurrence, Kind, OneSize
from crux.toy.program import Program, TrainedProgram, held_out_loss

MIN_RELATIVE_NORM = 0.5
"""A feature is represented if its norm is above this share of the largest norm."""

DIGON_TOLERANCE = 0.02
"""A feature has the dimensionality of a digon if it is within this distance of 1/2."""

MAX_EXCESS = 0.005
"""Seeds have equally good final losses if these differ by less than this share."""

JUMP_WINDOW = 0.1
"""Share of the training within which a change counts as a jump."""


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build instances of one density, one per seed, with snapshots of the weights."""
    if toy.kind is not Kind.relu_output or len(toy.densities) != 1:
        raise UserError("experiment=toy/learning_dynamics needs toy.kind=relu_output at one density")
    if toy.snapshots < 20:
        raise UserError(f"toy.snapshots={toy.snapshots}: experiment=toy/learning_dynamics needs 20 or more")
    return [build_model_program(toy, seed=seed)]


def snapshot_losses(trained: TrainedProgram, *, samples: int) -> Float[Tensor, "points seed"]:
    """Return the loss of every snapshot: exact if possible, otherwise on the same held-out samples for all."""
    exact = has_population_loss(trained.program)
    losses = [
        population_loss(trained.program, weights)
        if exact
        else held_out_loss(trained.program, weights, samples=samples, batch=min(samples, 1024))
        for weights in trained.snapshots.values()
    ]
    return torch.stack(losses)[..., 0]


def mean_cosine_within_sets(W: Float[Tensor, "m n"], *, n_sets: int) -> float:
    """Return the mean cosine of two features of one set."""
    directions = unit_columns(W).unflatten(-1, (n_sets, -1))
    size = directions.shape[-1]
    products = torch.einsum("msi,msj->sij", directions, directions)
    return float((products.sum((1, 2)) - size).mean() / (size * (size - 1)))


def mean_cosine_between_sets(W: Float[Tensor, "m n"], *, n_sets: int) -> float:
    """Return the mean cosine of two features of different sets."""
    directions = unit_columns(W).unflatten(-1, (n_sets, -1)).sum(-1)
    products = directions.T @ directions
    size = W.shape[-1] // n_sets
    return float((products.sum() - products.trace()) / (size**2 * n_sets * (n_sets - 1)))


def choose_seed(loss: Float[Tensor, "seed"], n_drops: Sequence[int]) -> int:
    """Return the seed whose loss dropped most often, among those with a final loss within MAX_EXCESS of the best; on a tie, the best."""
    good = [i for i, value in enumerate(loss.tolist()) if value <= (1 + MAX_EXCESS) * float(loss.min())]
    return max(good, key=lambda i: (n_drops[i], -float(loss[i])))


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Describe one seed's dimensionalities and loss during training, its final shape, and how abruptly features changed."""
    (program,) = trained
    steps = list(program.snapshots)
    losses = snapshot_losses(program, samples=toy.held_out)
    n_drops = [len(find_drops(loss_of_seed).steepest) for loss_of_seed in losses.T]
    chosen = choose_seed(instance_losses(program)[:, 0], n_drops)
    W = torch.stack([select_instance(weights, chosen, 0).W for weights in program.snapshots.values()])
    D, loss, drops = dimensionality(W), losses[:, chosen], find_drops(losses[:, chosen])
    final_norms = norms(W[-1])
    living = final_norms > MIN_RELATIVE_NORM * final_norms.max()
    shape = geometry_report(W[-1][:, living], **THRESHOLDS)
    at_half = ((D[-1][living] - 0.5).abs() <= DIGON_TOLERANCE).double().mean()  # 1/2 is the dimensionality in a digon
    n_paired = sum(len(factor.features) for factor in shape.factors if factor.name == "digon")
    window = round(JUMP_WINDOW * (len(steps) - 1))
    jump, steepness = largest_jump(D[:, living], window=window), abruptness(D[:, living])
    checks = [
        Check("share of represented features in digons at the end", n_paired / max(1, int(living.sum())), 0.8, 1),
        Check(f"share of represented features with D within {DIGON_TOLERANCE} of 1/2", float(at_half), 0.8, 1),
        Check(f"share of its range that a feature covers within {JUMP_WINDOW:.0%} of the steps (median)", float(jump.median()), 0.3, 1),
        Check("largest / median change of a feature between snapshots (median)", float(steepness.median()), 5, 1e9),
        Check("smallest number of distinct drops of the loss over seeds", min(n_drops), 2, 100),
    ]  # fmt: skip
    lines = [
        f"Number of distinct drops of the loss, per seed: {', '.join(map(str, n_drops))}.",
        f"Seed {run.seed + chosen} is shown. Its drops are steepest at the steps "
        + ", ".join(f"{steps[i]} (loss {loss[i]:.4g})" for i in drops.steepest)
        + ".",
        "",
        "## Represented features at the end",
        "",
        str(shape),
    ]
    figures = {
        "dynamics": plot_learning_dynamics(
            steps=torch.tensor(steps).numpy(),
            dimensionality=D.numpy(),
            loss_steps=torch.tensor(steps).numpy(),
            loss=loss.double().numpy(),
        )
    }
    arrays = {"steps": torch.tensor(steps), "dimensionality": D, "loss": losses, "W": W}
    metrics = {"drops": float(len(drops.steepest)), "at_once": float(jump.median()), "represented": float(living.sum())}
    if toy.together is Cooccurrence.correlated and toy.n_hidden == 3:
        within = [mean_cosine_within_sets(weights, n_sets=toy.n_sets) for weights in W]
        between = [mean_cosine_between_sets(weights, n_sets=toy.n_sets) for weights in W]
        final_shapes = [count_shapes(weights) for weights in program.weights.W[:, 0]]
        octahedra = sum(shapes == {"digon": 3} for shapes in final_shapes)
        checks += [
            Check(
                "sets separate: largest difference of the mean cosines within and between sets",
                max(a - b for a, b in zip(within, between, strict=True)),
                0.9,
                2,
            ),
            Check("octahedron at the end: three orthogonal digons", float(shape.names == {"digon": 3}), 1, 1),
            Check("octahedron at the end: cosine within a set", within[-1], -0.05, 0.05),
            Check("octahedron at the end: cosine between sets (−1/3)", between[-1], -0.38, -0.28),
        ]
        checks.append(Check("share of the seeds that end as an octahedron", octahedra / toy.seeds, 0.5, 1))
        metrics["octahedra"] = float(octahedra)
        lines.insert(1, f"{octahedra} of {toy.seeds} seeds end as an octahedron.")
        stages = [0, *drops.between, len(steps) - 1]
        figures["stages"] = plot_stages(
            weights=torch.stack([orient_canonically(W[i], living=THRESHOLDS["living"]) for i in stages]).numpy(),
            stages=torch.tensor(steps)[stages].numpy(),
            sets=(torch.arange(toy.n_features) // (toy.n_features // toy.n_sets)).numpy(),
            steps=torch.tensor(steps).numpy(),
            loss=loss.double().numpy(),
            titles=[f"cosine within sets {within[i]:.2f}\nbetween sets {between[i]:.2f}" for i in stages],
        )
    return Result(metrics, checks, figures, arrays, "\n".join(lines))


def count_shapes(W: Float[Tensor, "m n"]) -> dict[str, int]:
    """Return the number of factors of each shape."""
    return geometry_report(W, **THRESHOLDS).names


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
