"""Synchronised ReLU neurons of a perceptron: blocks at several distances, and the loss where each block has one gate."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from crux.config.markdown import markdown_table
from crux.config.progress import track
from crux.degeneracy.experiments.perceptrons import Perceptron, perceptron
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
from crux.runs.experiment import Experiment, keep_all_rows
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

DRAWS = 5
"""Random partitions that each partition by distance is set beside."""


class Merged(NamedTuple):
    """What came of one threshold."""

    threshold: float
    blocks: int
    neurons: int
    """In the blocks."""
    largest: int
    gates: float
    """Share of the living neurons' gates that is left."""
    train_loss: float
    loss: float
    """On held-out samples."""
    right: float
    chance_loss: float
    """The held-out loss with blocks of the same sizes at random, the mean over draws."""


def result(job: SynchronisedJob, run: ActiveRun) -> Result:
    """Compare gates on the training samples; report losses on them and on held-out ones."""
    of = perceptron(job.degeneracy, path=job.model.path, run=run)
    behind = relu_layers(of.network)
    hidden = of.network.clean(of.train.inputs, capture=list(behind.values()), final=False).activations
    found = {hook: measure_synchrony([hidden[before]]) for hook, before in behind.items()}
    rows, thresholds = [], sorted(job.degeneracy.thresholds)
    for step, threshold in enumerate(track(thresholds, "thresholds"), 1):
        kept = compute_once(
            run.folder,
            f"threshold_{threshold!r}",
            lambda at=threshold: pack(merged(of, found, threshold=at, seed=run.seed)._asdict(), prefix=""),
        )
        row = unpack(Merged, kept, prefix="", device=torch.device("cpu"))
        rows.append(row)
        run.add_row(step, {"threshold": row.threshold, "gates": row.gates, "loss": row.loss})
    train, test = of.network(of.train.inputs), of.network(of.test.inputs)
    living = sum(len(s.on_share) - len(s.dead) for s in found.values())
    exact = [block for s in found.values() for block in synchronised_blocks(s.distance, threshold=1e-15)]
    metrics = {"loss": of.test.loss(test), "right": of.test.right(test), "train_loss": of.train.loss(train)}
    metrics |= {"neurons": float(sum(len(s.on_share) for s in found.values())), "living": float(living)}
    metrics |= {"exact_blocks": float(len(exact))}
    metrics |= {f"loss/{row.threshold:g}": row.loss for row in rows} | {f"gates/{r.threshold:g}": r.gates for r in rows}
    lent = {
        hook: gate_sources(synchronised_blocks(s.distance, threshold=1e-15), len(s.on_share))
        for hook, s in found.items()
    }
    change = float((run_with_shared_gates(of.network, of.train.inputs, lent) - train).abs().max())
    nearest = {hook: closest(s).numpy() for hook, s in found.items()}
    figure = synchronised_neurons(
        nearest,
        thresholds=[row.threshold for row in rows],
        gates=[row.gates for row in rows],
        loss=[row.loss for row in rows],
        chance=[row.chance_loss for row in rows],
        own=metrics["loss"],
    )
    arrays = {f"error/{hook}": s.error for hook, s in found.items()} | {f"on/{h}": s.on_share for h, s in found.items()}
    checks = [Check("outputs where neurons that always agree share a gate: largest change", change, 0, 0)]
    return Result(metrics, checks, {"synchronised": figure}, arrays, report(of, found, rows, metrics))


def merged(of: Perceptron, found: dict[str, Synchrony], *, threshold: float, seed: int) -> Merged:
    """The network with a gate a block."""
    chosen = {hook: synchronised_blocks(s.distance, threshold=threshold) for hook, s in found.items()}
    lent = {hook: gate_sources(of_layer, len(found[hook].on_share)) for hook, of_layer in chosen.items()}
    generator = torch.Generator().manual_seed(seed)
    by_chance = [
        of.test.loss(
            run_with_shared_gates(
                of.network, of.test.inputs, {h: at_random(b, found[h], generator) for h, b in chosen.items()}
            )
        )
        for _ in range(DRAWS)
    ]
    every = [block for of_layer in chosen.values() for block in of_layer]
    neurons = sum(len(block.members) for block in every)
    living = sum(len(s.on_share) - len(s.dead) for s in found.values())
    train = run_with_shared_gates(of.network, of.train.inputs, lent)
    test = run_with_shared_gates(of.network, of.test.inputs, lent)
    return Merged(
        threshold,
        len(every),
        neurons,
        max((len(block.members) for block in every), default=0),
        (living - neurons + len(every)) / max(living, 1),
        of.train.loss(train),
        of.test.loss(test),
        of.test.right(test),
        sum(by_chance) / DRAWS,
    )


def at_random(found: list[SynchronisedBlock], of: Synchrony, generator: torch.Generator) -> Int[Tensor, "h"]:
    """Gates lent in blocks of the same sizes, of living neurons that are drawn at random."""
    living = (of.on_share > 0).nonzero()[:, 0]
    drawn = living[torch.randperm(len(living), generator=generator)].tolist()
    made = []
    for block in found:
        members, drawn = drawn[: len(block.members)], drawn[len(block.members) :]
        made.append(SynchronisedBlock(tuple(members), members[0]))
    return gate_sources(made, len(of.on_share))


def closest(of: Synchrony) -> Tensor:
    """Distance of each living neuron to the nearest other one."""
    living = (of.on_share > 0).nonzero()[:, 0]
    if len(living) < 2:
        return torch.zeros(0, dtype=torch.float64)
    among = of.distance[living][:, living].fill_diagonal_(torch.inf)
    return among.amin(1)


def report(of: Perceptron, found: dict[str, Synchrony], rows: list[Merged], metrics: dict[str, float]) -> str:
    """Neurons by layer, then one row per threshold."""
    lines = [
        f"{hook}: {len(s.on_share)} neurons, {len(s.dead)} never on, {int((s.on_share == 1).sum())} always on"
        for hook, s in found.items()
    ]
    lines += [
        f"{of.name}: held-out loss {metrics['loss']:.4g}, right {metrics['right']:.4f}; blocks of neurons that agree on every training "
        f"sample: {metrics['exact_blocks']:.0f}",
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


EXPERIMENT = Experiment(SynchronisedJob, result, keep_all_rows)
