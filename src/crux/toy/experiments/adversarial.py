"""Models in superposition are easier to attack: the rise of the loss under small perturbations against features per dimension.

Elhage et al. 2209.10652, "Superposition and Adversarial Examples": inputs move by a tenth of their mean norm, along the one analytic
attack that harms the model most. The rise (L' − L), relative to (L₀' − L₀) of a model without superposition, grows with sparsity and
follows 1/D*. Without superposition is the model at density 1, moved as far, on its own inputs: sparse ones are strange to it.
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
from crux.toy.figures.vulnerability import toy_vulnerability
from crux.toy.geometry.adversarial import analytic_attack, gradient_attack, rise
from crux.toy.geometry.dimensionality import dimensions_per_feature
from crux.toy.options import Kind, Tiled
from crux.toy.program import Program, Trained
from crux.toy.superposition import SuperpositionModel, Weights

REACH = 0.1
"""The attack's norm, of the mean norm of an input."""

SAMPLES = 512
"""Inputs that are attacked, for each instance."""

ASCENT = 40
"""Steps of the gradient-based attack."""


def programs(toy: Tiled, *, seed: int) -> list[Program]:
    """Build one instance for each density and seed; the density 1 is the comparison."""
    if 1.0 not in toy.densities or len(toy.densities) < 3:
        raise UserError("toy.densities: experiment=toy/adversarial compares two densities or more with 1.0")
    if toy.kind is not Kind.relu_output:
        raise UserError("toy.kind: experiment=toy/adversarial attacks relu_output")
    return split_into_tiles(build_model_program(toy, seed=seed), tile=toy.tile)


class Rises(NamedTuple):
    """By how much attacked models' errors rise, mean over inputs; the gradient climbs from the analytic attack and a random one."""

    analytic: Float[Tensor, "stream"]
    """One attack for all inputs."""
    gradient: Float[Tensor, "stream"]
    """One attack for all inputs."""
    analytic_each: Float[Tensor, "stream"]
    """The worst for each input."""
    gradient_each: Float[Tensor, "stream"]
    """The worst for each input."""


def rises(
    model: SuperpositionModel, x: Float[Tensor, "stream batch n"], *, reach: Float[Tensor, "stream"], seed: int
) -> Rises:
    """Return the rises of the error under attacks of norm `reach`."""
    rng, found = torch.Generator().manual_seed(seed), []
    for shared in (True, False):
        analytic = analytic_attack(model, x, reach=reach, shared=shared)
        noise = torch.randn(analytic.shape, generator=rng)
        noise = reach[:, None, None] * noise / noise.norm(dim=-1, keepdim=True)
        climbed = [gradient_attack(model, x, reach=reach, start=start, steps=ASCENT) for start in (analytic, noise)]
        with torch.no_grad():
            analytic, *climbed = (rise(model, x, delta) for delta in (analytic, *climbed))
        found += [analytic.mean(-1), torch.maximum(*climbed).mean(-1)]
    return Rises(*found)


def correlation(a: Float[Tensor, "n"], b: Float[Tensor, "n"]) -> float:
    """Return Pearson's correlation."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


def result(toy: Tiled, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Compare vulnerability and 1/D* of every instance, and how they go together."""
    whole = build_model_program(toy, seed=run.seed)
    W, b = (torch.cat([getattr(part.weights, key) for part in trained]) for key in ("W", "b"))
    density = torch.tensor(toy.densities).repeat_interleave(toy.seeds)
    data = whole.data(batch=SAMPLES, n_batches=1, purpose=Purpose.held_out)[0]
    reach = REACH * data.norm(dim=-1).mean(-1)
    own = rises(SuperpositionModel(whole.kind, Weights(W, b, None)), data, reach=reach, seed=run.seed)
    first = toy.densities.index(1.0) * toy.seeds
    dense = torch.arange(first, first + toy.seeds).repeat(len(toy.densities))  # the seed's instance at density 1
    without = SuperpositionModel(whole.kind, Weights(W[dense], b[dense], None))
    base = rises(without, data[dense], reach=reach, seed=run.seed)
    vulnerability, stronger, each = (
        mine / theirs for mine, theirs in zip(own[:3], (base.analytic, base.analytic, base.analytic_each), strict=True)
    )
    crowd = 1 / dimensions_per_feature(W[:, 0])
    share, share_each = own.analytic / own.gradient, own.analytic_each / own.gradient_each
    sparsest = density == density.min()
    checks = [
        Check("vulnerability at the sparsest", float(vulnerability[sparsest].mean()), 3, 100),
        Check("correlation of vulnerability with 1/D*", correlation(vulnerability, crowd), 0.9, 1),
        Check("without superposition the rise is λ²", float((base.analytic / reach.square()).mean()), 0.9, 1.1),
        Check("of the rise by gradient the analytic attack has at least", float(share.min()), 0.5, 1),
        Check("the same, each input attacked by itself", float(share_each.min()), 0.5, 1),
    ]
    about = f"L2 attacks of norm λ = {REACH} · mean ‖x‖ on {SAMPLES} inputs; rises of the loss (a sum over features)"
    header = [
        "1/(1−S)", "1/D*", "vulnerability", "by gradient", "each by itself", "rise, analytic", "by gradient",
        "without superposition", "λ²",
    ]  # fmt: skip
    rows = [
        [f"{1 / p:.3g}"]
        + [f"{ratios[i]:.2f}" for ratios in (crowd, vulnerability, stronger, each)]
        + [f"{rise[i]:.4f}" for rise in (own.analytic, own.gradient, base.analytic, reach.square())]
        for i, p in enumerate(density.tolist())
    ]
    metrics = {
        "vulnerability": float(vulnerability[sparsest].mean()),
        "vulnerability_each": float(each[sparsest].mean()),
        "features_per_dimension": float(crowd[sparsest].mean()),
        "analytic_share": float(share.mean()),
        "analytic_share_each": float(share_each.mean()),
    }
    means = [v.unflatten(0, (-1, toy.seeds)).mean(1).numpy() for v in (vulnerability, stronger, crowd)]
    figure = toy_vulnerability(
        densities=density[:: toy.seeds].numpy(),
        vulnerability=means[0],
        stronger=means[1],
        features_per_dimension=means[2],
    )
    arrays = {"density": density, "vulnerability": vulnerability, "features_per_dimension": crowd, "reach": reach}
    arrays |= {f"rise_{name}": value for name, value in own._asdict().items()}
    return Result(metrics, checks, {"vulnerability": figure}, arrays, f"{about}\n\n{markdown_table(header, rows)}")


EXPERIMENT = ToyExperiment(Tiled, programs, result)
