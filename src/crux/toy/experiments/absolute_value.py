"""Compute |x| with a hidden ReLU layer: a feature gets two neurons if there are enough; if not, sparse features share neurons.

Elhage et al. 2209.10652, "Computation in Superposition": first 3 features in 6 neurons, as ReLU(x) + ReLU(−x), then 100 in 40. A neuron
is monosemantic if it reads one feature, polysemantic if it reads several, and dead if its weights are negligible. The experiment also
counts motifs: a neuron that computes two features, and a second neuron that inhibits their interference (crux.toy.geometry.untied.Motif).
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

N_FEATURES_ENOUGH = 3
"""Number of features of the model "enough", which needs no superposition: it has two neurons per feature."""
MIN_GAIN = 0.5
"""In the search for motifs, neuron j computes feature i if it adds at least this share of |x_i| to output i."""
MIN_READ_WEIGHT = 0.25
"""Neuron j reads feature i if |W_ji| is above this share of the neuron's largest weight, max_k |W_jk|."""
MIN_SIDE_WEIGHT = 0.05
"""The same share where a neuron must read a single feature and nothing else: smaller weights are left over from training."""
DENSE_FROM, SPARSE_UP_TO = 1.0, 0.01
"""Neurons should be monosemantic at densities from DENSE_FROM on, and polysemantic at densities up to SPARSE_UP_TO."""


def build_programs(toy: OneSize, *, seed: int) -> list[Program]:
    """Build the model with enough neurons, then the model with too few, with one instance per density and seed."""
    ones = torch.ones(1, N_FEATURES_ENOUGH)
    size = Size(N_FEATURES_ENOUGH, 2 * N_FEATURES_ENOUGH, toy.n_sets)
    enough = build_program(toy, size, seed=seed, name="enough", kind=toy.kind, density=ones, importance=ones)
    return [enough, build_model_program(toy, seed=seed)]


def result(toy: OneSize, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Describe the best instances: how many features each neuron reads, and how many motifs there are."""
    enough, few = trained
    loss_enough = losses_on_shared_samples(enough, n_seeds=toy.seeds, samples=toy.held_out)
    loss = losses_on_shared_samples(few, n_seeds=toy.seeds, samples=toy.held_out)
    # Both programs have one instance per stream: setting 0. The model with enough neurons has a single density.
    best_enough = int(best_streams(loss_enough, n_seeds=toy.seeds)[0, 0])
    best_few = best_streams(loss, n_seeds=toy.seeds)[:, 0].tolist()
    relative_loss = float(loss_enough[best_enough, 0]) / zero_output_loss(enough, best_enough)
    W_enough, W_out_enough = balance_neurons(select_instance(enough.weights, best_enough, 0))
    n_separate = count_separate_features(W_enough)
    checks = [
        Check("loss with two neurons per feature / loss of the zero output", relative_loss, 0, 1e-4),
        Check("features with one dedicated neuron per sign", n_separate, N_FEATURES_ENOUGH, N_FEATURES_ENOUGH),
    ]
    metrics = {"loss/enough": float(loss_enough[best_enough, 0])}
    rows, panels, n_motifs = [], [], 0
    models: list[tuple[Tensor, Tensor]] = []
    for density, stream in zip(toy.densities, best_few, strict=True):
        W, W_out = balance_neurons(select_instance(few.weights, stream, 0))
        features = features_per_neuron(W, min_weight=MIN_READ_WEIGHT)
        n_mono = sum(len(read) == 1 for read in features)
        n_poly = sum(len(read) > 1 for read in features)
        motifs = find_motifs(W, W_out, min_gain=MIN_GAIN)
        n_motifs += len(motifs)
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
        n_main_features = len({read[0] for read in features if read})  # each neuron counts for its largest feature
        relative = f"{best_loss / zero_output_loss(few, stream):.3f}"
        n_dead = toy.n_hidden - n_mono - n_poly
        rows.append(
            [f"{density:g}", f"{best_loss:.3g}", relative, n_main_features, n_mono, n_poly, n_dead, len(motifs)]
        )
        title = f"{density_title(density)}: {n_mono} monosemantic, {n_poly} polysemantic"
        panels.append(Panel(W.abs().numpy(), title, "|W|", [len(features[j]) > 1 for j in order]))
        polysemantic_share = n_poly / max(1, n_mono + n_poly)
        what = f"share of polysemantic neurons at density {density:g}"
        if density >= DENSE_FROM:
            checks.append(Check(what, polysemantic_share, 0, 0.1))
        if density <= SPARSE_UP_TO:
            checks.append(Check(what, polysemantic_share, 0.75, 1))
    checks.append(Check("motifs of asymmetric superposition with inhibition", n_motifs, 1, math.inf))
    figures = {
        "neurons": plot_neurons(panels, columns=1, width=8.0, height=1.5),
        "enough": plot_neurons(build_panels(W_enough, W_out_enough), columns=2, width=3.4, height=3.0),
    }
    arrays = {
        "W": torch.stack([W for W, _ in models]),
        "W_out": torch.stack([W_out for _, W_out in models]),
        "loss": loss,
        "loss_enough": loss_enough,
        "W_enough": W_enough,
        "W_out_enough": W_out_enough,
    }
    header = [
        "density", "loss", "loss / loss of the zero output", "features with a neuron of their own", "monosemantic", "polysemantic",
        "dead", "motifs",
    ]  # fmt: skip
    return Result(metrics, checks, figures, arrays, markdown_table(header, rows))


def balance_neurons(weights: Weights) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n m"]]:
    """Return the input and output weights of the neurons, scaled to equal norms."""
    assert weights.W_out is not None
    return balance_weights(weights.W, weights.W_out)


def zero_output_loss(trained: TrainedProgram, stream: int) -> float:
    """Return the loss of a model whose output is always 0: Σ I_i E x_i² = Σ I_i p_i / 3.

    An active x_i is uniform on [−1, 1], with mean square 1/3; it is active with probability p_i.
    """
    program = trained.program
    return float((program.importance[stream, 0] * program.density[stream]).sum() / 3)


def count_separate_features(W: Float[Tensor, "m n"]) -> int:
    """Count the features with one neuron that reads only their positive values and one that reads only their negative values."""
    positive, negative = set(), set()  # the features whose positive, or negative, values have a dedicated neuron
    for row, features in zip(W, features_per_neuron(W, min_weight=MIN_SIDE_WEIGHT), strict=True):
        if len(features) == 1:
            (feature,) = features
            (positive if row[feature] > 0 else negative).add(feature)
    return len(positive & negative)


def build_panels(W: Float[Tensor, "m n"], W_out: Float[Tensor, "n m"]) -> list[Panel]:
    """Return a panel of the input weights and one of the output weights.

    Neurons are ordered by feature, those that read positive values first.
    """
    order = sorted(range(len(W)), key=lambda j: (int(W[j].abs().argmax()), -float(W[j].sum())))
    polysemantic = [len(features) > 1 for features in features_per_neuron(W[order], min_weight=MIN_READ_WEIGHT)]
    return [
        Panel(W[order].numpy(), "input weights: W", "weight", polysemantic),
        Panel(W_out.mT[order].numpy(), "output weights: W_out", "weight", polysemantic),
    ]


EXPERIMENT = ToyExperiment(OneSize, build_programs, result)
