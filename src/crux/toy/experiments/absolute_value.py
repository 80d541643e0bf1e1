"""Compute |x| with a hidden ReLU layer: with enough neurons each feature gets two, with too few and sparse features neurons are shared.

Elhage et al. 2209.10652, "Computation in Superposition": first 3 features in 6 neurons, as ReLU(x) + ReLU(−x), then 100 in 40.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.compare import losses_on_shared_samples
from crux.toy.exact.best import best_streams, select_instance
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, build_program
from crux.toy.figures.neurons import Panel, plot_neurons
from crux.toy.figures.polygons import density_title
from crux.toy.geometry.neurons import monosemanticity, order_by_monosemanticity
from crux.toy.geometry.untied import balance_weights, features_per_neuron, find_motifs
from crux.toy.options import OneSize, Size
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import Weights

ENOUGH = 3
"""Number of features of the model without superposition; it has twice as many neurons."""
GAIN = 0.5
"""A neuron computes a feature if it returns at least this share of its |x|."""
OWN = 0.25
"""A neuron reads a feature if |W_ji| is at least this share of its largest weight."""
DENSE, SPARSE = 1.0, 0.01
"""At this density and above neurons should be monosemantic; at SPARSE and below they should not."""


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build the model with enough neurons, then one instance per density and seed of the smaller model."""
    ones = torch.ones(1, ENOUGH)
    size = Size(ENOUGH, 2 * ENOUGH, toy.n_sets)
    enough = build_program(toy, size, seed=seed, name="enough", kind=toy.kind, density=ones, importance=ones)
    return [enough, build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Describe the best instances: how many features each neuron has, and where one neuron inhibits the interference of another."""
    enough, sweep = trained
    loss_enough = losses_on_shared_samples(enough, n_seeds=toy.seeds, samples=toy.held_out)
    loss = losses_on_shared_samples(sweep, n_seeds=toy.seeds, samples=toy.held_out)
    (first,) = best_streams(loss_enough, n_seeds=toy.seeds)[:, 0].tolist()
    share = float(loss_enough[first, 0]) / loss_of_answering_zero(enough, first)
    reads, writes = balanced_sides(select_instance(enough.weights, first, 0))
    checks = [
        Check("loss with two neurons per feature, as a share of the loss of the output 0", share, 0, 1e-4),
        Check("features with one dedicated neuron per sign", count_separate_features(reads), ENOUGH, ENOUGH),
    ]
    metrics = {"loss/enough": float(loss_enough[first, 0])}
    rows, panels, best = [], [], best_streams(loss, n_seeds=toy.seeds)[:, 0].tolist()
    models: list[tuple[Tensor, Tensor]] = []
    for density, stream in zip(toy.densities, best, strict=True):
        W, W_out = balanced_sides(select_instance(sweep.weights, stream, 0))
        features = features_per_neuron(W, least=OWN)
        n_mono, n_poly = (sum(counts(len(f)) for f in features) for counts in (lambda n: n == 1, lambda n: n > 1))
        motifs = find_motifs(W, W_out, least=GAIN)
        order = order_by_monosemanticity(W)
        W, W_out = W[order], W_out[:, order]
        models.append((W, W_out))
        best_loss = float(loss[stream, 0])
        metrics |= {
            f"loss/{density:g}": best_loss,
            f"monosemantic/{density:g}": float(n_mono),
            f"polysemantic/{density:g}": float(n_poly),
            f"monosemanticity/{density:g}": float(monosemanticity(W).mean()),
            f"motifs/{density:g}": float(len(motifs)),
        }
        computed = len({i for f in features for i in f[:1]})
        share = f"{best_loss / loss_of_answering_zero(sweep, stream):.3f}"
        dead = toy.n_hidden - n_mono - n_poly
        rows.append([f"{density:g}", f"{best_loss:.3g}", share, computed, n_mono, n_poly, dead, len(motifs)])
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
        "neurons": plot_neurons(panels, columns=1, width=8.0, height=1.5),
        "enough": plot_neurons(build_panels(reads, writes), columns=2, width=3.4, height=3.0),
    }
    arrays = {
        "W": torch.stack([W for W, _ in models]),
        "W_out": torch.stack([W_out for _, W_out in models]),
        "loss": loss,
        "loss_enough": loss_enough,
        "W_enough": reads,
        "W_out_enough": writes,
    }
    header = ["density", "loss", "share of output 0", "features", "monosemantic", "polysemantic", "dead", "motifs"]
    return Result(metrics, checks, figures, arrays, markdown_table(header, rows))


def balanced_sides(weights: Weights) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n m"]]:
    """Return the input and output weights of the neurons, scaled to equal norms."""
    assert weights.W_out is not None
    return balance_weights(weights.W, weights.W_out)


def loss_of_answering_zero(trained: TrainedProgram, stream: int) -> float:
    """Return the loss of the output 0: Σ I_i p_i E u² = Σ I_i p_i / 3."""
    program = trained.program
    return float((program.importance[stream, 0] * program.density[stream]).sum() / 3)


def count_separate_features(W: Float[Tensor, "m n"]) -> int:
    """Count the features with one neuron that reads only their positive values and one that reads only their negative values."""
    signs = {
        (f[0], bool(row[f[0]] > 0)) for row, f in zip(W, features_per_neuron(W, least=0.05), strict=True) if len(f) == 1
    }
    return sum({(i, True), (i, False)} <= signs for i in range(W.shape[1]))


def build_panels(reads: Float[Tensor, "m n"], writes: Float[Tensor, "n m"]) -> list[Panel]:
    """Return a panel of the input weights and one of the output weights.

    Neurons are ordered by feature, those that read positive values first.
    """
    order = sorted(range(len(reads)), key=lambda j: (int(reads[j].abs().argmax()), -float(reads[j].sum())))
    pure = [len(f) == 1 for f in features_per_neuron(reads[order], least=OWN)]
    return [
        Panel(reads[order].numpy(), "input weights: W", "weight", pure),
        Panel(writes.mT[order].numpy(), "output weights: W_out", "weight", pure),
    ]


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
