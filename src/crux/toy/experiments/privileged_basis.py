"""A ReLU on the hidden layer makes its basis privileged: dense features get one neuron each, sparse features share neurons.

Elhage et al. 2209.10652, "Superposition in a Privileged Basis": ten features, five neurons, the best of 1000 models per density. As
features become sparser, circuits with more features than neurons form, first next to monosemantic neurons, then of all neurons.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.compare import join_tiles, losses_on_shared_samples, polish_on_samples, select_streams
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_model_program, split_into_tiles
from crux.toy.figures.neurons import Panel, plot_neurons
from crux.toy.figures.polygons import density_title
from crux.toy.geometry.neurons import (
    MIN_CONNECTION,
    Circuit,
    count_neuron_pairs,
    find_circuits,
    find_connections,
    monosemanticity,
    order_by_monosemanticity,
)
from crux.toy.options import Tiled
from crux.toy.program import Program, TrainedProgram

REGIMES = (
    (0.5, 1.0, "1 in 1"),
    (0.2, 0.45, "3 in 2"),
    (0.15, 0.15, "5 in 3"),
    (0.12, 0.12, "6 in 4"),
    (0.05, 0.08, "8 in 5"),
    (0.0, 0.04, "pairs"),
)
"""Lowest and highest density, and the paper's largest circuit there, as "features in neurons".

"pairs" means that each feature has a distinct pair of neurons."""
PAPER_SIZE = (10, 5)
"""Numbers of features and neurons of the model in which the paper observed the regimes."""
N_FINALISTS = 3
"""Number of seeds per density that are polished, those with the lowest losses."""
MAX_EQUAL_RATIO = 1.005
"""Two losses count as equal up to this ratio; at density 0.12 those of 6 in 4 and 5 in 3 differ by less than a thousandth."""


def build_programs(toy: Tiled, *, seed: int) -> list[Program]:
    """Build one instance per density and seed."""
    return split_into_tiles(build_model_program(toy, seed=seed), tile=toy.tile)


def result(toy: Tiled, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Describe the best instance of each density: its circuits, and the monosemanticity of its neurons."""
    program = join_tiles(trained)
    loss = losses_on_shared_samples(program, n_seeds=toy.seeds, samples=toy.held_out)
    n_finalists = min(N_FINALISTS, toy.seeds)
    best_seeds = loss.view(-1, toy.seeds).argsort(1)[:, :n_finalists]
    best_streams = best_seeds + toy.seeds * torch.arange(len(toy.densities))[:, None]
    finalists = polish_on_samples(
        select_streams(program, best_streams.flatten()),
        active=4096,
        max_iterations=100,
        compute=partial(compute_once, run.folder),
    )
    final = losses_on_shared_samples(finalists, n_seeds=n_finalists, samples=4 * toy.held_out).view(-1, n_finalists)
    every_W = finalists.weights.W.view(-1, n_finalists, *finalists.weights.W.shape[2:])
    checks, metrics, panels, rows = [], {}, [], []
    for density, losses, models in zip(toy.densities, final, every_W, strict=True):
        W = models[losses.argmin()]
        # Negative weights only inhibit, because features are positive: they count neither as connections nor for monosemanticity.
        order = order_by_monosemanticity(W.clamp(min=0))
        best_loss = float(losses.min())
        connections = find_connections(W, min_weight=MIN_CONNECTION)
        n_connections = connections.sum(1)
        circuits = describe_circuits(find_circuits(connections))
        mean_monosemanticity = float(monosemanticity(W.clamp(min=0)).mean())
        metrics[f"loss/{density:g}"] = best_loss
        metrics[f"monosemanticity/{density:g}"] = mean_monosemanticity
        metrics[f"monosemantic_neurons/{density:g}"] = float((n_connections == 1).sum())
        rows.append([f"{density:g}", f"{best_loss:.5f}", f"{mean_monosemanticity:.3f}", circuits])
        polysemantic = (n_connections[order] > 1).tolist()
        panels.append(Panel(W[order].numpy(), f"{density_title(density)}\n{circuits}", "weights W", polysemantic))
        if (toy.n_features, toy.n_hidden) == PAPER_SIZE:
            checks += check_regime(models, losses, density)
    table = markdown_table(["density", "loss", "monosemanticity", "features in neurons"], rows)
    figure = plot_neurons(panels, columns=4, width=2.3, height=2.5)
    arrays = {"W": every_W, "loss": loss, "loss_polished": final}
    return Result(metrics, checks, {"neurons": figure}, arrays, table)


def check_regime(models: Float[Tensor, "k m n"], losses: Float[Tensor, "k"], density: float) -> list[Check]:
    """Check that the best model has the circuit that the paper reports at this density, or a loss equal to the best model that has it."""
    for low, high, kind in REGIMES:
        if low <= density <= high:
            of_kind = torch.tensor([kind == name_largest_circuit(W) for W in models])
            ratio = float(losses[of_kind].min() / losses.min()) if of_kind.any() else math.inf
            return [
                Check(f"{kind} at density {density:g}: lowest loss / lowest loss of all", ratio, 1, MAX_EQUAL_RATIO)
            ]
    return []


def name_largest_circuit(W: Float[Tensor, "m n"]) -> str:
    """Return the largest circuit as text, such as "3 in 2", or "pairs"."""
    connections = find_connections(W, min_weight=MIN_CONNECTION)
    if count_neuron_pairs(connections) == W.shape[1]:
        return "pairs"
    circuits = find_circuits(connections)
    return str(max(circuits, key=lambda circuit: len(circuit.features))) if circuits else ""


def describe_circuits(circuits: Sequence[Circuit]) -> str:
    """Return the circuits as text, such as "3 × 1 in 1, 3 in 2"."""
    names = [str(circuit) for circuit in sorted(circuits, key=lambda circuit: len(circuit.features))]
    counts = {name: names.count(name) for name in names}
    return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in counts.items())


EXPERIMENT = ToyExperiment(Tiled, build_programs, result)
