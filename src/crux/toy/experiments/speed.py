"""What training many instances as one program saves: the time of a step against that of as many steps of one instance alone.

A step is everything: drawing the data, forward, backward, AdamW. The two are timed in turn, so that a busy machine slows both.
"""

import time
from collections.abc import Callable, Sequence

import torch

from crux.config.markdown import markdown_table
from crux.config.schema import Config
from crux.toy.experiments.programs import importances, program, settings, uniform
from crux.toy.experiments.result import Check, Result
from crux.toy.experiments.training import recipe
from crux.toy.features import Purpose
from crux.toy.figures.speed import toy_speed
from crux.toy.module import SuperpositionModule, initial
from crux.toy.program import Program, Trained
from crux.toy.superposition import SuperpositionModel

BATCHES = (16, 64, 256, 1024, 4096)
SECONDS = 2.0
"""For each measurement, at least, and at least REPEATS rounds."""
REPEATS = 5
ALONE = 8
"""Instances that are timed alone, in turn; the time of all is theirs in proportion."""


def programs(config: Config) -> list[Program]:
    """Nothing to train."""
    return []


def result(config: Config, trained: Sequence[Trained]) -> Result:
    """The median over rounds of (one program's step) / (the sum of the instances' steps alone), for several batch sizes."""
    toy = settings(config)
    whole = program(config, name="all", density=uniform(toy), importance=importances(toy)[None], kind=None, points=None)
    n = len(whole.seeds)
    shares, steps, rows = [], [], []
    for batch in BATCHES:
        together = stepper(config, whole, batch)
        singly = [stepper(config, only(whole, k), batch) for k in range(min(ALONE, n))]
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
    """One stream of the program."""
    one = slice(k, k + 1)
    return whole._replace(seeds=whole.seeds[one], density=whole.density[one], importance=whole.importance[one])


def stepper(config: Config, of: Program, batch: int) -> Callable[[], None]:
    """A function that makes one step more, of a plain loop: what Lightning adds to a step would be the same for both, and larger for
    the many runs."""
    kind, shape = of.kind, of.importance.shape
    weights = initial(kind, seeds=of.seeds, n_settings=shape[1], n_features=shape[2], n_hidden=of.n_hidden)
    model = SuperpositionModel(kind, weights)
    told = recipe(config)
    module = SuperpositionModule(model, importance=of.importance, recipe=told, snapshots=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=told.lr, weight_decay=told.weight_decay, fused=True)
    data = of.data(batch=batch, n_batches=10**9, purpose=Purpose.training)
    step = 0

    def once() -> None:
        nonlocal step
        optimizer.zero_grad()
        module.training_step(data[step], step).backward()
        optimizer.step()
        step += 1

    once()
    return once


def seconds(once: Callable[[], None]) -> float:
    """Of one step."""
    begin = time.perf_counter()
    once()
    return time.perf_counter() - begin
