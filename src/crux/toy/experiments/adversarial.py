"""Models in superposition are easier to attack: the vulnerability to small perturbations against the features per dimension.

Elhage et al. 2209.10652, "Superposition and Adversarial Examples": inputs move by a tenth of their mean norm, along the
analytic attack that is most harmful to the model. The increase of the loss, L' − L, relative to that of a model without
superposition, L₀' − L₀, grows with sparsity and follows 1/D*. The model without superposition is the one at density 1. It is
attacked at the same distance on dense inputs, because it was not trained on sparse ones.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, split_into_tiles
from crux.toy.features import Purpose
from crux.toy.figures.vulnerability import plot_vulnerability
from crux.toy.geometry.adversarial import analytic_attack, error_increase, gradient_attack
from crux.toy.geometry.dimensionality import dimensions_per_feature
from crux.toy.options import Kind, Tiled
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import SuperpositionModel, Weights

RELATIVE_REACH = 0.1
"""Norm of an attack, relative to the mean norm of an input."""

N_INPUTS = 512
"""Number of inputs that are attacked, per instance."""

N_ASCENT_STEPS = 40
"""Number of steps of the gradient-based attack."""


def build_programs(toy: Tiled, *, seed: int) -> list[Program]:
    """Build one instance per density and seed; density 1 is the reference."""
    if 1.0 not in toy.densities or len(toy.densities) < 3:
        raise UserError("toy.densities: experiment=toy/adversarial compares at least two densities with 1.0")
    if toy.kind is not Kind.relu_output:
        raise UserError("toy.kind: experiment=toy/adversarial needs relu_output")
    return split_into_tiles(build_model_program(toy, seed=seed), tile=toy.tile)


class ErrorIncreases(NamedTuple):
    """The increases of a model's error under attacks, mean over inputs.

    The gradient-based attack starts from the analytic one and from a random one; the stronger result counts.
    """

    analytic: Float[Tensor, "stream"]
    """Under the strongest analytic attack, the same for all inputs of a stream."""
    gradient: Float[Tensor, "stream"]
    """Under the gradient-based attack, the same for all inputs of a stream."""
    analytic_each: Float[Tensor, "stream"]
    """Under the analytic attack that is strongest for each input."""
    gradient_each: Float[Tensor, "stream"]
    """Under a gradient-based attack on each input."""


def measure_increases(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], *, reach: Float[Tensor, "stream"], seed: int
) -> ErrorIncreases:
    """Return the increases of the error under attacks of norm `reach`."""
    rng, increases = torch.Generator().manual_seed(seed), []
    for shared in (True, False):
        analytic = analytic_attack(model, x, reach=reach, shared=shared)
        noise = torch.randn(analytic.shape, generator=rng)
        noise = reach[:, None, None] * noise / noise.norm(dim=-1, keepdim=True)
        attacks = [
            gradient_attack(model, x, reach=reach, start=start, steps=N_ASCENT_STEPS) for start in (analytic, noise)
        ]
        with torch.no_grad():
            by_analytic = error_increase(model, x, analytic)
            by_gradient = torch.maximum(*(error_increase(model, x, attack) for attack in attacks))
        increases += [by_analytic.mean(-1), by_gradient.mean(-1)]
    return ErrorIncreases(*increases)


def correlation(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> float:
    """Return Pearson's correlation coefficient."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def result(toy: Tiled, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Compare the vulnerability of every instance with 1/D*."""
    whole = build_model_program(toy, seed=run.seed)
    W, b = (torch.cat([getattr(part.weights, key) for part in trained]) for key in ("W", "b"))
    density = torch.tensor(toy.densities).repeat_interleave(toy.seeds)
    data = whole.data(batch=N_INPUTS, n_batches=1, purpose=Purpose.held_out)[0]
    reach = RELATIVE_REACH * data.norm(dim=-1).mean(-1)
    attacked = measure_increases(SuperpositionModel(whole.kind, Weights(W, b, None)), data, reach=reach, seed=run.seed)
    # The reference of a stream is the instance of the same seed at density 1; streams are ordered by density, then by seed.
    first_dense = toy.densities.index(1.0) * toy.seeds
    reference = torch.arange(first_dense, first_dense + toy.seeds).repeat(len(toy.densities))
    reference_model = SuperpositionModel(whole.kind, Weights(W[reference], b[reference], None))
    base = measure_increases(reference_model, data[reference], reach=reach, seed=run.seed)
    vulnerability, by_gradient, per_input = (
        increase / base_increase
        for increase, base_increase in zip(
            attacked[:3], (base.analytic, base.analytic, base.analytic_each), strict=True
        )
    )
    features_per_dimension = 1 / dimensions_per_feature(W[:, 0])
    analytic_share = attacked.analytic / attacked.gradient
    analytic_share_each = attacked.analytic_each / attacked.gradient_each
    sparsest = density == density.min()
    checks = [
        Check("vulnerability at the lowest density", float(vulnerability[sparsest].mean()), 3, 100),
        Check("correlation of vulnerability with 1/D*", correlation(vulnerability, features_per_dimension), 0.9, 1),
        Check("increase without superposition / λ²", float((base.analytic / reach.square()).mean()), 0.9, 1.1),
        Check("analytic attack / gradient-based attack, smallest", float(analytic_share.min()), 0.5, 1),
        Check("the same, with one attack per input", float(analytic_share_each.min()), 0.5, 1),
    ]
    description = f"L2 attacks of norm λ = {RELATIVE_REACH} · mean ‖x‖ on {N_INPUTS} inputs; increase of the loss (summed over features)"
    header = [
        "1/(1−S)", "1/D*", "vulnerability", "by gradient", "one attack per input", "increase, analytic", "by gradient",
        "without superposition", "λ²",
    ]  # fmt: skip
    rows = [
        [f"{1 / p:.3g}"]
        + [f"{ratios[i]:.2f}" for ratios in (features_per_dimension, vulnerability, by_gradient, per_input)]
        + [f"{increase[i]:.4f}" for increase in (attacked.analytic, attacked.gradient, base.analytic, reach.square())]
        for i, p in enumerate(density.tolist())
    ]
    metrics = {
        "vulnerability": float(vulnerability[sparsest].mean()),
        "vulnerability_each": float(per_input[sparsest].mean()),
        "features_per_dimension": float(features_per_dimension[sparsest].mean()),
        "analytic_share": float(analytic_share.mean()),
        "analytic_share_each": float(analytic_share_each.mean()),
    }
    means = [
        values.unflatten(0, (-1, toy.seeds)).mean(1).numpy()
        for values in (vulnerability, by_gradient, features_per_dimension)
    ]
    figure = plot_vulnerability(
        densities=density[:: toy.seeds].numpy(),
        vulnerability=means[0],
        by_gradient=means[1],
        features_per_dimension=means[2],
    )
    arrays = {
        "density": density,
        "vulnerability": vulnerability,
        "features_per_dimension": features_per_dimension,
        "reach": reach,
    }
    arrays |= {f"rise_{name}": value for name, value in attacked._asdict().items()}
    return Result(
        metrics, checks, {"vulnerability": figure}, arrays, f"{description}\n\n{markdown_table(header, rows)}"
    )


EXPERIMENT = ToyExperiment(Tiled, build_programs, result)
