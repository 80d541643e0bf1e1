"""Experiment: synchronised ReLU neurons of a perceptron, and the loss when each block of neurons shares one gate."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.config.progress import track
from crux.degeneracy.experiments.perceptrons import Perceptron, load_or_train_perceptron
from crux.degeneracy.figures.synchronised import synchronised_neurons
from crux.degeneracy.options import SynchronisedJob
from crux.degeneracy.packing import pack, unpack
from crux.degeneracy.synchronised import (
    SynchronisedBlock,
    Synchrony,
    gate_sources,
    measure_synchrony,
    relu_layers,
    run_with_shared_gates,
    synchronised_blocks,
)
from crux.runs.experiment import Experiment, last_row_of_history
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

N_RANDOM_PARTITIONS = 5
"""Number of random partitions into blocks with which each partition by distance is compared."""


class MergedGates(NamedTuple):
    """The losses when the neurons of each block share a gate, for the blocks at one distance threshold."""

    threshold: float
    blocks: int
    """Number of blocks."""
    neurons: int
    """Neurons in the blocks."""
    largest: int
    """Neurons in the largest block."""
    gates: float
    """Number of different gates left, as a share of the living neurons."""
    train_loss: float
    loss: float
    """Loss on held-out samples."""
    right: float
    """Accuracy on held-out samples."""
    chance_loss: float
    """Held-out loss with random blocks of the same sizes, mean over draws."""


def result(job: SynchronisedJob, run: ActiveRun) -> Result:
    """Find synchronised blocks on the training samples; report the loss with shared gates on training and held-out samples."""
    perceptron = load_or_train_perceptron(job.degeneracy, path=job.model.path, run=run)
    relu_inputs = relu_layers(perceptron.network)
    hidden = perceptron.network.clean(
        perceptron.train.inputs, capture=list(relu_inputs.values()), final=False
    ).activations
    synchrony = {hook: measure_synchrony([hidden[before]]) for hook, before in relu_inputs.items()}
    rows, thresholds = [], sorted(job.degeneracy.thresholds)
    for step, threshold in enumerate(track(thresholds, "thresholds"), 1):
        tensors = compute_once(
            run.folder,
            f"threshold_{threshold!r}",
            lambda threshold=threshold: pack(
                merge_gates(perceptron, synchrony, threshold=threshold, seed=run.seed)._asdict(), prefix=""
            ),
        )
        row = unpack(MergedGates, tensors, prefix="", device=torch.device("cpu"))
        rows.append(row)
        run.add_row(step, {"threshold": row.threshold, "gates": row.gates, "loss": row.loss})
    train, test = perceptron.network(perceptron.train.inputs), perceptron.network(perceptron.test.inputs)
    living = sum(len(s.on_share) - len(s.dead) for s in synchrony.values())
    exact_blocks = [block for s in synchrony.values() for block in synchronised_blocks(s.distance, threshold=1e-15)]
    metrics = {
        "loss": perceptron.test.loss(test),
        "right": perceptron.test.accuracy(test),
        "train_loss": perceptron.train.loss(train),
    }
    metrics |= {"neurons": float(sum(len(s.on_share) for s in synchrony.values())), "living": float(living)}
    metrics |= {"exact_blocks": float(len(exact_blocks))}
    metrics |= {f"loss/{row.threshold:g}": row.loss for row in rows} | {f"gates/{r.threshold:g}": r.gates for r in rows}
    sources = {
        hook: gate_sources(synchronised_blocks(s.distance, threshold=1e-15), len(s.on_share))
        for hook, s in synchrony.items()
    }
    change = float((run_with_shared_gates(perceptron.network, perceptron.train.inputs, sources) - train).abs().max())
    nearest = {hook: compute_nearest_distances(s).numpy() for hook, s in synchrony.items()}
    figure = synchronised_neurons(
        nearest,
        thresholds=[row.threshold for row in rows],
        gates=[row.gates for row in rows],
        loss=[row.loss for row in rows],
        chance=[row.chance_loss for row in rows],
        unmodified=metrics["loss"],
    )
    arrays = {f"error/{hook}": s.error for hook, s in synchrony.items()} | {
        f"on/{h}": s.on_share for h, s in synchrony.items()
    }
    checks = [Check("largest change of the outputs when neurons that always agree share a gate", change, 0, 0)]
    return Result(
        metrics, checks, {"synchronised": figure}, arrays, format_report(perceptron, synchrony, rows, metrics)
    )


def merge_gates(perceptron: Perceptron, synchrony: dict[str, Synchrony], *, threshold: float, seed: int) -> MergedGates:
    """Let each block of neurons share one gate, and measure the losses."""
    blocks_of_layer = {hook: synchronised_blocks(s.distance, threshold=threshold) for hook, s in synchrony.items()}
    sources = {hook: gate_sources(blocks, len(synchrony[hook].on_share)) for hook, blocks in blocks_of_layer.items()}
    generator = torch.Generator().manual_seed(seed)
    chance_losses = [
        perceptron.test.loss(
            run_with_shared_gates(
                perceptron.network,
                perceptron.test.inputs,
                {h: draw_random_sources(b, synchrony[h], generator) for h, b in blocks_of_layer.items()},
            )
        )
        for _ in range(N_RANDOM_PARTITIONS)
    ]
    blocks = [block for layer_blocks in blocks_of_layer.values() for block in layer_blocks]
    neurons = sum(len(block.members) for block in blocks)
    living = sum(len(s.on_share) - len(s.dead) for s in synchrony.values())
    train = run_with_shared_gates(perceptron.network, perceptron.train.inputs, sources)
    test = run_with_shared_gates(perceptron.network, perceptron.test.inputs, sources)
    return MergedGates(
        threshold,
        len(blocks),
        neurons,
        max((len(block.members) for block in blocks), default=0),
        (living - neurons + len(blocks)) / max(living, 1),
        perceptron.train.loss(train),
        perceptron.test.loss(test),
        perceptron.test.accuracy(test),
        sum(chance_losses) / N_RANDOM_PARTITIONS,
    )


def draw_random_sources(
    blocks: list[SynchronisedBlock], layer: Synchrony, generator: torch.Generator
) -> Int[Tensor, "h"]:
    """Return gate sources for blocks of the same sizes that consist of randomly drawn living neurons."""
    living = (layer.on_share > 0).nonzero()[:, 0]
    shuffled = living[torch.randperm(len(living), generator=generator)].tolist()
    random_blocks = []
    for block in blocks:
        members, shuffled = shuffled[: len(block.members)], shuffled[len(block.members) :]
        random_blocks.append(SynchronisedBlock(tuple(members), members[0]))
    return gate_sources(random_blocks, len(layer.on_share))


def compute_nearest_distances(layer: Synchrony) -> Tensor:
    """Return the distance of each living neuron to its nearest other living neuron."""
    living = (layer.on_share > 0).nonzero()[:, 0]
    if len(living) < 2:
        return torch.zeros(0, dtype=torch.float64)
    distances = layer.distance[living][:, living].fill_diagonal_(torch.inf)
    return distances.amin(1)


def format_report(
    perceptron: Perceptron, synchrony: dict[str, Synchrony], rows: list[MergedGates], metrics: dict[str, float]
) -> str:
    """Return the numbers of neurons per layer, and a table with one row per threshold."""
    lines = [
        f"{hook}: {len(s.on_share)} neurons, {len(s.dead)} never on, {int((s.on_share == 1).sum())} always on"
        for hook, s in synchrony.items()
    ]
    lines += [
        f"{perceptron.name}: held-out loss {metrics['loss']:.4g}, accuracy {metrics['right']:.4f}; blocks of neurons that agree "
        f"on every training sample: {metrics['exact_blocks']:.0f}",
        "",
    ]
    header = [
        "distance", "blocks", "neurons in them", "largest", "gates left", "training loss", "held-out loss", "right",
        "at random",
    ]  # fmt: skip
    cells = [
        [f"{r.threshold:g}", r.blocks, r.neurons, r.largest, f"{r.gates:.1%}", f"{r.train_loss:.4g}",
         f"{r.loss:.4g}", f"{r.right:.4f}", f"{r.chance_loss:.4g}"]
        for r in rows
    ]  # fmt: skip
    return "\n".join([*lines, markdown_table(header, cells)])


EXPERIMENT = Experiment(SynchronisedJob, result, last_row_of_history)
