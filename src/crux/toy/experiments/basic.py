"""Which features are represented, and which share a direction, as they become sparser; the linear model beside the ReLU model.

Elhage et al. 2209.10652, "Demonstrating Superposition": the linear model keeps the n_hidden most important features and learns
E[x] of the others, at any sparsity; the ReLU model does the same where features are dense, and superposes where they are sparse.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import best_of_seeds
from crux.toy.exact.loss import independent_moments, linear_loss
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.superposition import toy_superposition
from crux.toy.geometry.dimensionality import norms, superposition
from crux.toy.options import Kind, OneSize, Together
from crux.toy.program import Program, Trained
from crux.toy.superposition import Weights

REPRESENTED = 0.5
"""A feature is, from this norm on: half-way between none and the whole."""

CLOSE = 0.005
"""By how much of it a loss may be above the linear model's exact optimum."""

DENSE, SPARSE = 1.0, 0.1
"""No superposition is expected at the first density; some from the second on."""


def programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build the linear model and the ReLU model, one instance for each density and seed."""
    if toy.kind is not Kind.relu_output or toy.together is not Together.independent or toy.signed:
        raise UserError(
            "experiment=toy/basic compares the linear model with toy.kind=relu_output, for toy.together=independent and "
            "toy.signed=false"
        )
    if list(toy.densities) != sorted(toy.densities, reverse=True):
        raise UserError("toy.densities: experiment=toy/basic wants them in descending order")
    if toy.n_hidden >= toy.n_features:
        raise UserError("toy.n_hidden: experiment=toy/basic is about fewer hidden dimensions than features")
    relu = build_model_program(toy, seed=seed)
    return [relu._replace(name="linear", kind=Kind.linear), relu]


def linear_optimum(
    density: Float[Tensor, "*batch n_features"], *, importance: Float[Tensor, "n_features"], n_hidden: int
) -> Float[Tensor, "*batch"]:
    """Return the linear model's least loss, Σ I_i Var(x_i) over all but the n_hidden features with the largest I_i Var(x_i).

    At the best b the loss is ‖I^½ (1 − WᵀW) Var(x)^½‖²: the best matrix of rank n_hidden in place of the second term keeps
    the largest entries of the diagonal I^½ Var(x)^½ (Eckart–Young), and WᵀW can be it.
    """
    worth = importance * (density / 3 - density.square() / 4)
    return worth.sort(dim=-1).values[..., : worth.shape[-1] - n_hidden].sum(-1)


def linear_excess(trained: Trained) -> Float[Tensor, "stream setting"]:
    """Return the exact loss of the linear instances above the least, as a share of the least."""
    program = trained.program
    density, importance = program.density.double()[:, None], program.importance.double()
    mean, second = independent_moments(density, signed=False)
    W = trained.weights.W.double()
    loss = linear_loss(W.mT @ W, trained.weights.b.double(), importance=importance, mean=mean, second=second)
    least = torch.stack(
        [
            linear_optimum(p, importance=i, n_hidden=program.n_hidden)
            for p, i in zip(density[:, 0], importance[:, 0], strict=True)
        ]
    )
    return loss / least[:, None] - 1


def best(trained: Trained, loss: Float[Tensor, "stream setting"], *, seeds: int) -> Weights:
    """Return the best seed's weights of every density."""
    chosen = best_of_seeds(loss, n_seeds=seeds)[:, 0]
    return Weights(trained.weights.W[chosen, 0], trained.weights.b[chosen, 0], None)


def result(toy: OneSize, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure norms, superposition and biases of the best instance of each density, and check whether they are the paper's."""
    flat, bent = trained
    n, m, densities = toy.n_features, toy.n_hidden, torch.tensor(toy.densities)
    excess = linear_excess(flat)
    linear, relu = best(flat, excess, seeds=toy.seeds), best(bent, bent.loss, seeds=toy.seeds)
    least = excess.unflatten(0, (-1, toy.seeds)).amin(1)[:, 0]
    length, shared = norms(relu.W), superposition(relu.W)
    counts = (length > REPRESENTED).sum(-1)
    mean_shared = (shared * (length > REPRESENTED)).sum(-1) / counts.clamp(min=1)
    checks = [
        Check("linear: largest excess over its exact optimum", float(least.max()), -1e-6, CLOSE),
        Check("linear: features kept beside the most important, or dropped of them", misplaced(linear.W), 0, 0),
        Check("linear: WᵀW is 1 for these, 0 elsewhere: squared error, of its square", gap(linear.W), 0, 0.01),
        Check("linear: b is p/2 of those dropped: mean error, of p/2", bias_gap(linear, densities, m), 0, 0.1),
    ]
    dense = [i for i, p in enumerate(toy.densities) if p >= DENSE]
    sparse = [i for i, p in enumerate(toy.densities) if p <= SPARSE]
    if dense:
        at = Weights(relu.W[dense], relu.b[dense], None)
        checks += [
            Check("ReLU, p = 1: features kept beside the most important, or dropped of them", misplaced(at.W), 0, 0),
            Check("ReLU, p = 1: WᵀW is 1 for these, 0 elsewhere: squared error, of its square", gap(at.W), 0, 0.01),
            Check("ReLU, p = 1: b is p/2 of those dropped: mean error, of p/2", bias_gap(at, densities[dense], m), 0, 0.1),
            Check("ReLU, p = 1: superposition, mean over represented features", float(mean_shared[dense].max()), 0, 0.02),
        ]  # fmt: skip
    checks.append(
        Check("ReLU: least gain in represented features from a density to the next", float(counts.diff().min()), 0, n)
    )
    if sparse:
        checks += [
            Check("ReLU: features represented at the sparsest", float(counts[-1]), 2 * m, n),
            Check("ReLU, p ≤ 0.1: superposition, least mean over represented features",
                  float(mean_shared[sparse].min()), 0.1, n),
        ]  # fmt: skip
    metrics, rows = {}, []
    for p, count, mean, over in zip(toy.densities, counts.tolist(), mean_shared.tolist(), least.tolist(), strict=True):
        metrics |= {f"represented/{p:g}": float(count), f"superposition/{p:g}": mean, f"linear_excess/{p:g}": over}
        rows.append([f"{p:g}", f"{count} of {n}", f"{mean:.3f}", f"{over:.3%}"])
    W, b = torch.cat([linear.W[:1], relu.W]), torch.cat([linear.b[:1], relu.b])
    figure = toy_superposition(
        weights=W.numpy(),
        biases=b.numpy(),
        norms=norms(W).numpy(),
        superposition=superposition(W).numpy(),
        titles=[f"linear, density {toy.densities[0]:g}", *(f"density {p:g}" for p in toy.densities)],
    )
    arrays = {"W": relu.W, "b": relu.b, "W_linear": linear.W, "b_linear": linear.b, "linear_excess": excess}
    table = markdown_table(["density", "represented", "superposition", "linear excess"], rows)
    return Result(metrics, checks, {"superposition": figure}, arrays, table)


def misplaced(W: Float[Tensor, "models m n"]) -> int:
    """Return the most features that one model represents after the first m, or fails to represent of them."""
    m, n = W.shape[-2:]
    return int(((norms(W) > REPRESENTED) != (torch.arange(n) < m)).sum(-1).max())


def gap(W: Float[Tensor, "models m n"]) -> float:
    """Return the largest, over models, of ‖WᵀW − diag(1 … 1, 0 … 0)‖² / m, with ones for the first m features."""
    m, n = W.shape[-2:]
    kept = torch.diag((torch.arange(n) < m).to(W))
    return float((W.mT @ W - kept).square().sum((-2, -1)).max() / m)


def bias_gap(weights: Weights, densities: Float[Tensor, "models"], m: int) -> float:
    """Return the largest, over models, of the mean |b_i − p/2| / (p/2) of the features after the first m.

    The mean over features: an optimiser that has seen N samples of late knows E[x] to √(4/(3 p N)) of it, 4 % at p = .001 and a million.
    """
    mean = densities[:, None] / 2
    return float(((weights.b[:, m:] - mean).abs() / mean).mean(-1).max())


EXPERIMENT = ToyExperiment(OneSize, programs, result)
