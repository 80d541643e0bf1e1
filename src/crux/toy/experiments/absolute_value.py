"""Computing |x| with a hidden ReLU layer: two neurons a feature where they suffice, polysemantic ones where features are many and sparse.

Elhage et al. 2209.10652, "Computation in Superposition": 3 features in 6 neurons, ReLU(x) + ReLU(−x); then 100 in 40.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.compare import shared_losses
from crux.toy.exact.best import best_of_seeds, instance
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, build_program
from crux.toy.figures.neurons import Panel, toy_neurons
from crux.toy.figures.polygons import density_title
from crux.toy.geometry.neurons import monosemanticity, most_monosemantic_first
from crux.toy.geometry.untied import balanced, features_of, motifs
from crux.toy.options import OneSize, Size
from crux.toy.program import Program, Trained
from crux.toy.superposition import Weights

ENOUGH = 3
"""Features of the model without superposition; it has twice as many neurons."""
GAIN = 0.5
"""A neuron computes a feature where it gives it at least so much of its |x|."""
OWN = 0.25
"""A neuron has to do with a feature where |W_ji| is at least so much of its largest."""
DENSE, SPARSE = 1.0, 0.01
"""At the one neurons should be monosemantic, from the other down they should not."""


def programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build the model with enough neurons, then an instance for each density and seed."""
    ones = torch.ones(1, ENOUGH)
    size = Size(ENOUGH, 2 * ENOUGH, toy.n_sets)
    enough = build_program(toy, size, seed=seed, name="enough", kind=toy.kind, density=ones, importance=ones)
    return [enough, build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Describe the best instances: which neurons have how many features, and where one inhibits what another got wrong."""
    enough, sweep = trained
    loss_enough = shared_losses(enough, n_seeds=toy.seeds, samples=toy.held_out)
    loss = shared_losses(sweep, n_seeds=toy.seeds, samples=toy.held_out)
    (first,) = best_of_seeds(loss_enough, n_seeds=toy.seeds)[:, 0].tolist()
    share = float(loss_enough[first, 0]) / loss_of_answering_zero(enough, first)
    reads, writes = sides(instance(enough.weights, first, 0))
    checks = [
        Check("loss with two neurons a feature, share of that of always answering 0", share, 0, 1e-4),
        Check("features with a neuron for either sign, of their own", count_separate_features(reads), ENOUGH, ENOUGH),
    ]
    metrics = {"loss/enough": float(loss_enough[first, 0])}
    rows, panels, found, best = [], [], [], best_of_seeds(loss, n_seeds=toy.seeds)[:, 0].tolist()
    for density, stream in zip(toy.densities, best, strict=True):
        W, W_out = sides(instance(sweep.weights, stream, 0))
        features = features_of(W, least=OWN)
        n_mono, n_poly = (sum(counts(len(f)) for f in features) for counts in (lambda n: n == 1, lambda n: n > 1))
        seen = motifs(W, W_out, least=GAIN)
        order = most_monosemantic_first(W)
        W, W_out = W[order], W_out[:, order]
        found.append((W, W_out))
        lost = float(loss[stream, 0])
        metrics |= {
            f"loss/{density:g}": lost,
            f"monosemantic/{density:g}": float(n_mono),
            f"polysemantic/{density:g}": float(n_poly),
            f"monosemanticity/{density:g}": float(monosemanticity(W).mean()),
            f"motifs/{density:g}": float(len(seen)),
        }
        computed = len({i for f in features for i in f[:1]})
        share = f"{lost / loss_of_answering_zero(sweep, stream):.3f}"
        dead = toy.n_hidden - n_mono - n_poly
        rows.append([f"{density:g}", f"{lost:.3g}", share, computed, n_mono, n_poly, dead, len(seen)])
        title = f"{density_title(density)}: {n_mono} monosemantic, {n_poly} polysemantic"
        panels.append(Panel(W.abs().numpy(), title, "|W|", [len(features[j]) < 2 for j in order]))
        poly = n_poly / max(1, n_mono + n_poly)
        if density >= DENSE:
            checks.append(Check(f"share of polysemantic neurons at density {density:g}", poly, 0, 0.1))
        if density <= SPARSE:
            checks.append(Check(f"share of polysemantic neurons at density {density:g}", poly, 0.75, 1))
    n_motifs = sum(value for name, value in metrics.items() if name.startswith("motifs/"))
    checks.append(Check("motifs of asymmetric superposition with inhibition", n_motifs, 1, math.inf))
    figures = {
        "neurons": toy_neurons(panels, columns=1, width=8.0, height=1.5),
        "enough": toy_neurons(build_panels(reads, writes), columns=2, width=3.4, height=3.0),
    }
    arrays = {
        "W": torch.stack([W for W, _ in found]),
        "W_out": torch.stack([W_out for _, W_out in found]),
        "loss": loss,
        "loss_enough": loss_enough,
        "W_enough": reads,
        "W_out_enough": writes,
    }
    header = ["density", "loss", "share of answering 0", "features", "monosemantic", "polysemantic", "dead", "motifs"]
    return Result(metrics, checks, figures, arrays, markdown_table(header, rows))


def sides(weights: Weights) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n m"]]:
    """Return what neurons read and write, at one scale."""
    assert weights.W_out is not None
    return balanced(weights.W, weights.W_out)


def loss_of_answering_zero(trained: Trained, stream: int) -> float:
    """Return the loss of an answer of 0: Σ I_i p_i E u² = Σ I_i p_i / 3."""
    program = trained.program
    return float((program.importance[stream, 0] * program.density[stream]).sum() / 3)


def count_separate_features(W: Float[Tensor, "m n"]) -> int:
    """Count the features with a neuron that reads their positive values and one that reads their negative values, and nothing else."""
    signs = {(f[0], bool(row[f[0]] > 0)) for row, f in zip(W, features_of(W, least=0.05), strict=True) if len(f) == 1}
    return sum({(i, True), (i, False)} <= signs for i in range(W.shape[1]))


def build_panels(reads: Float[Tensor, "m n"], writes: Float[Tensor, "n m"]) -> list[Panel]:
    """Return panels with both sides of the neurons, ordered by feature, a reader of positive values first."""
    order = sorted(range(len(reads)), key=lambda j: (int(reads[j].abs().argmax()), -float(reads[j].sum())))
    pure = [len(f) == 1 for f in features_of(reads[order], least=OWN)]
    return [
        Panel(reads[order].numpy(), "what neurons read: W", "weight", pure),
        Panel(writes.mT[order].numpy(), "what they write: W_out", "weight", pure),
    ]


EXPERIMENT = ToyExperiment(OneSize, programs, result)
