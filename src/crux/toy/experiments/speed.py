"""What training many instances as one program saves: the time of a step against that of as many steps of one instance alone.

A step is everything: drawing the data, forward, backward, AdamW. The two are timed in turn, so that a busy machine slows both.
"""

import time
from collections.abc import Callable, Sequence

import torch

from crux.config.markdown import markdown_table
from crux.config.schema import Adam
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result
from crux.toy.experiments.experiment import ToyExperiment
from crux.toy.experiments.programs import build_program_of_size
from crux.toy.features import Purpose
from crux.toy.figures.speed import toy_speed
from crux.toy.module import initial_weights
from crux.toy.options import ToyJob
from crux.toy.program import Program, Trained
from crux.toy.superposition import SuperpositionModel, error

BATCHES = (16, 64, 256, 1024, 4096)
SECONDS = 2.0
"""For each measurement, at least, and at least REPEATS rounds."""
REPEATS = 5
ALONE = 8
"""Instances that are timed alone, in turn; the time of all is theirs in proportion."""


def programs(config: ToyJob, *, seed: int) -> list[Program]:
    """Return no program: nothing is trained to the end."""
    return []


def result(config: ToyJob, trained: Sequence[Trained], run: ActiveRun) -> Result:
    """Measure the median over rounds of (one program's step) / (the sum of the instances' steps alone), for several batch sizes."""
    whole = build_program_of_size(config.toy, config.toy.model_sizes[0], seed=run.seed, name="all")
    n = len(whole.seeds)
    shares, steps, rows = [], [], []
    for batch in BATCHES:
        together = stepper(whole, config.optimizer, batch)
        singly = [stepper(only(whole, k), config.optimizer, batch) for k in range(min(ALONE, n))]
        rounds = []
        begin = time.perf_counter()
        while len(rounds) < REPEATS or time.perf_counter() - begin < SECONDS:
            rounds.append((seconds(together), n * sum(map(seconds, singly)) / len(singly)))
        one, alone = (torch.tensor(column) for column in zip(*rounds, strict=True))
        shares.append(float((one / alone).median()))
        steps.append((float(one.median()), float(alone.median()) / n))
        rows.append([batch, f"{1e3 * steps[-1][0]:.2f}", f"{1e3 * steps[-1][1]:.3f}", f"{shares[-1]:.3f}"])
    found = dict(zip(BATCHES, shares, strict=True))
    return Result(
        metrics={f"share/{batch}": share for batch, share in found.items()},
        checks=[Check(f"time of {n} instances together / alone, batch 1024", found[1024], 0, 1 / 3)],
        figures={"speed": toy_speed(list(BATCHES), shares, n_instances=n)},
        arrays={"batch": torch.tensor(BATCHES), "share": torch.tensor(shares), "seconds": torch.tensor(steps)},
        report=markdown_table(["batch", "one program, ms a step", "alone, ms a step", "share"], rows),
    )


def only(whole: Program, k: int) -> Program:
    """Return one stream of the program."""
    one = slice(k, k + 1)
    return whole._replace(seeds=whole.seeds[one], density=whole.density[one], importance=whole.importance[one])


def stepper(program: Program, optimizer: Adam, batch: int) -> Callable[[], None]:
    """Return a function that makes one step more, of a plain loop.

    What Lightning adds to a step would be the same for both, and larger for the many runs.
    """
    kind, (_, n_settings, n_features) = program.kind, program.importance.shape
    weights = initial_weights(
        kind, seeds=program.seeds, n_settings=n_settings, n_features=n_features, n_hidden=program.n_hidden, scale=1.0
    )
    model = SuperpositionModel(kind, weights)
    adam = torch.optim.AdamW(model.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay, fused=True)
    data = program.data(batch=batch, n_batches=10**9, purpose=Purpose.training)
    step = 0

    def once() -> None:
        nonlocal step
        adam.zero_grad()
        (error(model, data[step], program.importance).sum() / n_features).backward()
        adam.step()
        step += 1

    once()
    return once


def seconds(once: Callable[[], None]) -> float:
    """Measure the time of one step."""
    begin = time.perf_counter()
    once()
    return time.perf_counter() - begin


EXPERIMENT = ToyExperiment(ToyJob, programs, result)
