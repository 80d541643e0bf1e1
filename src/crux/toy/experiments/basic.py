"""The features that are represented, and those that share a direction, as features become sparser: linear and ReLU model compared.

Elhage et al. 2209.10652, "Demonstrating Superposition". The linear model represents the n_hidden most important features and
learns E[x] of the others, at any sparsity. The ReLU model does the same if features are dense, and uses superposition if they
are sparse.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.exact.best import best_streams
from crux.toy.exact.loss import independent_feature_moments, linear_loss
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program
from crux.toy.figures.superposition import plot_superposition
from crux.toy.geometry.dimensionality import norms, superposition
from crux.toy.options import Cooccurrence, Kind, OneSize
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import Weights

MIN_NORM = 0.5
"""A feature is represented if its norm is above this value, half-way between 0 and 1."""

MAX_EXCESS = 0.005
"""Largest relative excess of a loss over the linear model's exact optimum."""

DENSE_FROM, SPARSE_UP_TO = 1.0, 0.1
"""No superposition is expected at density DENSE_FROM; some is expected at SPARSE_UP_TO and below."""


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build the linear model and the ReLU model, with one instance per density and seed."""
    if toy.kind is not Kind.relu_output or toy.together is not Cooccurrence.independent or toy.signed:
        raise UserError(
            "experiment=toy/basic compares the linear model with toy.kind=relu_output, for toy.together=independent and "
            "toy.signed=false"
        )
    if list(toy.densities) != sorted(toy.densities, reverse=True):
        raise UserError("toy.densities: experiment=toy/basic needs them in descending order")
    if toy.n_hidden >= toy.n_features:
        raise UserError("toy.n_hidden: experiment=toy/basic needs fewer hidden dimensions than features")
    relu = build_model_program(toy, seed=seed)
    return [relu._replace(name="linear", kind=Kind.linear), relu]


def linear_optimum(
    density: Float[Tensor, "*batch n_features"], *, importance: Float[Tensor, "n_features"], n_hidden: int
) -> Float[Tensor, "*batch"]:
    """Return the linear model's lowest loss, Σ I_i Var(x_i) over all but the n_hidden features with the largest I_i Var(x_i).

    At the optimal b the loss is ‖I^½ (1 − WᵀW) Var(x)^½‖². By Eckart–Young, the best matrix of rank n_hidden in place of
    I^½ WᵀW Var(x)^½ has the n_hidden largest entries of the diagonal matrix I^½ Var(x)^½, and some W attains it.
    """
    losses_if_dropped = importance * (density / 3 - density.square() / 4)
    return losses_if_dropped.sort(dim=-1).values[..., : losses_if_dropped.shape[-1] - n_hidden].sum(-1)


def linear_excess(trained: TrainedProgram) -> Float[Tensor, "stream setting"]:
    """Return the relative excess of the exact loss of the linear instances over the optimum."""
    program = trained.program
    density, importance = program.density.double()[:, None], program.importance.double()
    mean, second = independent_feature_moments(density, signed=False)
    W = trained.weights.W.double()
    loss = linear_loss(W.mT @ W, trained.weights.b.double(), importance=importance, mean=mean, second=second)
    optimum = torch.stack(
        [
            linear_optimum(p, importance=i, n_hidden=program.n_hidden)
            for p, i in zip(density[:, 0], importance[:, 0], strict=True)
        ]
    )
    return loss / optimum[:, None] - 1


def select_best_weights(trained: TrainedProgram, loss: Float[Tensor, "stream setting"], *, n_seeds: int) -> Weights:
    """Return, for each density, the weights of the best seed."""
    chosen = best_streams(loss, n_seeds=n_seeds)[:, 0]  # there is one setting, number 0
    return Weights(trained.weights.W[chosen, 0], trained.weights.b[chosen, 0], None)


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure norms, superposition and biases of the best instance of each density, and compare them with the paper's."""
    linear_program, relu_program = trained
    n, m, densities = toy.n_features, toy.n_hidden, torch.tensor(toy.densities)
    excess = linear_excess(linear_program)
    linear, relu = (
        select_best_weights(linear_program, excess, n_seeds=toy.seeds),
        select_best_weights(relu_program, relu_program.loss, n_seeds=toy.seeds),
    )
    lowest_excess = excess.unflatten(0, (-1, toy.seeds)).amin(1)[:, 0]
    represented = norms(relu.W) > MIN_NORM
    counts = represented.sum(-1)
    mean_superposition = (superposition(relu.W) * represented).sum(-1) / counts.clamp(min=1)
    checks = [
        Check("linear: largest relative excess over the exact optimum", float(lowest_excess.max()), -1e-6, MAX_EXCESS),
        Check("linear: features wrongly represented or wrongly dropped", count_misplaced(linear.W), 0, 0),
        Check("linear: squared error of WᵀW, relative", gram_error(linear.W), 0, 0.01),
        Check("linear: error of b = p/2 of dropped features, relative", bias_error(linear, densities, m), 0, 0.1),
    ]
    dense = [i for i, p in enumerate(toy.densities) if p >= DENSE_FROM]
    sparse = [i for i, p in enumerate(toy.densities) if p <= SPARSE_UP_TO]
    if dense:
        dense_weights = Weights(relu.W[dense], relu.b[dense], None)
        checks += [
            Check("ReLU, p = 1: features wrongly represented or wrongly dropped", count_misplaced(dense_weights.W), 0, 0),
            Check("ReLU, p = 1: squared error of WᵀW, relative", gram_error(dense_weights.W), 0, 0.01),
            Check("ReLU, p = 1: error of b = p/2 of dropped features, relative", bias_error(dense_weights, densities[dense], m), 0, 0.1),
            Check("ReLU, p = 1: superposition, mean over represented features", float(mean_superposition[dense].max()), 0, 0.02),
        ]  # fmt: skip
    checks.append(
        Check(
            "ReLU: smallest gain in represented features from one density to the next", float(counts.diff().min()), 0, n
        )
    )
    if sparse:
        checks += [
            Check("ReLU: features represented at the lowest density", float(counts[-1]), 2 * m, n),
            Check("ReLU, p ≤ 0.1: superposition, lowest mean over represented features",
                  float(mean_superposition[sparse].min()), 0.1, n),
        ]  # fmt: skip
    metrics, rows = {}, []
    for i, p in enumerate(toy.densities):
        count, mean, over = int(counts[i]), float(mean_superposition[i]), float(lowest_excess[i])
        metrics |= {f"represented/{p:g}": float(count), f"superposition/{p:g}": mean, f"linear_excess/{p:g}": over}
        rows.append([f"{p:g}", f"{count} of {n}", f"{mean:.3f}", f"{over:.3%}"])
    W, b = torch.cat([linear.W[:1], relu.W]), torch.cat([linear.b[:1], relu.b])
    figure = plot_superposition(
        weights=W.numpy(),
        biases=b.numpy(),
        norms=norms(W).numpy(),
        superposition=superposition(W).numpy(),
        titles=[f"linear, density {toy.densities[0]:g}", *(f"density {p:g}" for p in toy.densities)],
    )
    arrays = {"W": relu.W, "b": relu.b, "W_linear": linear.W, "b_linear": linear.b, "linear_excess": excess}
    table = markdown_table(["density", "represented", "superposition", "linear excess"], rows)
    return Result(metrics, checks, {"superposition": figure}, arrays, table)


def count_misplaced(W: Float[Tensor, "models m n"]) -> int:
    """Return the largest number, over models, of features that are wrongly represented or wrongly dropped.

    Right is to represent the first m features, which are the most important, and to drop the others.
    """
    m, n = W.shape[-2:]
    return int(((norms(W) > MIN_NORM) != (torch.arange(n) < m)).sum(-1).max())


def gram_error(W: Float[Tensor, "models m n"]) -> float:
    """Return the largest, over models, of ‖WᵀW − diag(1 … 1, 0 … 0)‖² / m, with ones for the first m features."""
    m, n = W.shape[-2:]
    kept = torch.diag((torch.arange(n) < m).to(W))
    return float((W.mT @ W - kept).square().sum((-2, -1)).max() / m)


def bias_error(weights: Weights, densities: Float[Tensor, "models"], m: int) -> float:
    """Return the largest, over models, of the mean |b_i − p/2| / (p/2) of the features after the first m.

    It is a mean over features, because the biases are noisy: after N recent samples an optimiser knows E[x] with a relative error of
    √(4/(3 p N)), which is 4 % for p = 0.001 and a million samples.
    """
    mean = densities[:, None] / 2
    return float(((weights.b[:, m:] - mean).abs() / mean).mean(-1).max())


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
