"""Measure the time of one training step of many instances as one program, compared with a step of each instance separately.

A step includes drawing the data, forward pass, backward pass and AdamW. The two are timed in turn, so that other load on the
machine slows down both.
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
from crux.toy.figures.speed import plot_program_speed
from crux.toy.module import initial_weights
from crux.toy.options import ToyJob
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import SuperpositionModel, sampled_loss

BATCH_SIZES = (16, 64, 256, 1024, 4096)
MIN_SECONDS = 2.0
"""Minimum duration of each measurement, which has at least MIN_ROUNDS rounds."""
MIN_ROUNDS = 5
MAX_TIMED_ALONE = 8
"""Largest number of instances that are timed separately; their time is extrapolated to all instances."""


def build_programs(config: ToyJob, *, seed: int) -> list[Program]:
    """Return no program, because nothing is trained to the end."""
    return []


def result(config: ToyJob, trained: Sequence[TrainedProgram], run: ActiveRun) -> Result:
    """Measure the median ratio, at several batch sizes, of one program's step to the separate steps of all its instances."""
    whole = build_program_of_size(config.toy, config.toy.model_sizes[0], seed=run.seed, name="all")
    n = len(whole.seeds)
    shares, steps, rows = [], [], []
    for batch in BATCH_SIZES:
        step_together = build_training_step(whole, config.optimizer, batch)
        separate_steps = [
            build_training_step(select_stream(whole, k), config.optimizer, batch)
            for k in range(min(MAX_TIMED_ALONE, n))
        ]
        rounds = []  # (seconds per step of the program, seconds for a separate step of every instance)
        begin = time.perf_counter()
        while len(rounds) < MIN_ROUNDS or time.perf_counter() - begin < MIN_SECONDS:
            rounds.append((time_step(step_together), n * sum(map(time_step, separate_steps)) / len(separate_steps)))
        one_program, separate = torch.tensor(rounds).T
        shares.append(float((one_program / separate).median()))
        steps.append((float(one_program.median()), float(separate.median()) / n))
        rows.append([batch, f"{1e3 * steps[-1][0]:.2f}", f"{1e3 * steps[-1][1]:.3f}", f"{shares[-1]:.3f}"])
    by_batch = dict(zip(BATCH_SIZES, shares, strict=True))
    return Result(
        metrics={f"share/{batch}": share for batch, share in by_batch.items()},
        checks=[Check(f"time of {n} instances as one program / separately, batch 1024", by_batch[1024], 0, 1 / 3)],
        figures={"speed": plot_program_speed(list(BATCH_SIZES), shares, n_instances=n)},
        arrays={"batch": torch.tensor(BATCH_SIZES), "share": torch.tensor(shares), "seconds": torch.tensor(steps)},
        report=markdown_table(
            [
                "batch",
                "one program, ms per step",
                "one instance, ms per step",
                "one program / all instances separately",
            ],
            rows,
        ),
    )


def select_stream(whole: Program, k: int) -> Program:
    """Return a program with one stream of this program."""
    one = slice(k, k + 1)
    return whole._replace(seeds=whole.seeds[one], density=whole.density[one], importance=whole.importance[one])


def build_training_step(program: Program, optimizer: Adam, batch: int) -> Callable[[], None]:
    """Return a function that makes one step of a plain training loop.

    Lightning's overhead per step is left out: it is the same for both sides and would favour the single program.
    """
    kind, (_, n_settings, n_features) = program.kind, program.importance.shape
    weights = initial_weights(
        kind, seeds=program.seeds, n_settings=n_settings, n_features=n_features, n_hidden=program.n_hidden, scale=1.0
    )
    model = SuperpositionModel(kind, weights)
    adam = torch.optim.AdamW(model.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay, fused=True)
    data = program.data(batch=batch, n_batches=10**9, purpose=Purpose.training)
    step = 0

    def train_one_step() -> None:
        nonlocal step
        adam.zero_grad()
        (sampled_loss(model, data[step], program.importance).sum() / n_features).backward()
        adam.step()
        step += 1

    train_one_step()  # the first step is slower, because it allocates memory
    return train_one_step


def time_step(step: Callable[[], None]) -> float:
    """Return the duration of one step in seconds."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


EXPERIMENT = ToyExperiment(ToyJob, build_programs, result)
