"""The life of every job: find an earlier run, create the run folder, start tracking, work, write the results, finish, show them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crux.config.errors import UserError
from crux.config.progress import shown
from crux.config.schema import Job, to_plain
from crux.runs.part import Part, make_parts, start_tracking
from crux.runs.run_folder import RunFolder, new_path
from crux.runs.tracking import find_earlier_run, how_to_compare


class Run(NamedTuple):
    """A job while it runs."""

    folder: RunFolder
    parts: Sequence[Part]
    """Its runs; one, unless it trains many SAEs at once."""
    seed: int
    resumed: bool
    """Whether an earlier start left something to continue."""
    last_row: int
    """Step of the last row that stays of an earlier start's history; -1 if none does."""

    @property
    def progress(self) -> bool:
        """Whether progress bars are shown."""
        return self.parts[0].config.trainer.progress

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row to the history of each part, and to MLflow, unless an earlier start added it."""
        if step > self.last_row:
            for part in self.parts:
                part.add_row(step, row)

    def abandon(self) -> None:
        """End the MLflow runs of a job that has to be ended from outside of its training."""
        for part in self.parts:
            if part.tracker is not None:
                part.tracker.end("FAILED")


class Outcome(NamedTuple):
    """The result of one part of a job."""

    metrics: Mapping[str, float]
    """As they are written to metrics.json."""
    show: Callable[[], None]
    """Prints them."""


@dataclass(frozen=True)
class Work:
    """What a kind of job does between its start and its end, once everything that it needs is loaded."""

    name: str
    """Name of the run folder, behind the time."""
    carry_out: Callable[[Run], Mapping[str, Outcome]]
    """Returns the outcome of each part, by its name; a part without one has failed."""
    last_row: Callable[[RunFolder], int]
    """The last row of an earlier start's history that stays when its run is continued."""
    params: Mapping[str, object]
    """For MLflow, in addition to those of the configuration."""
    parts: Mapping[str, Job]
    """The configuration of each part, by the name of its folder; empty if the job is one run."""
    failure: Callable[[], UserError] | None = None
    """Returns the error that ends a job some of whose parts have no outcome; None if parts never end by themselves."""


def run_job(config: Job, *, folder: Path | None, prepare: Callable[[], Work]) -> None:
    """Run a job from its start to its end, or continue an earlier start of it.

    Args:
        folder: the run folder that a sweep gives it; None: a new one.
        prepare: loads what the job needs. What the user has to fix is found there, before a run folder is made.

    Raises:
        UserError: for what the user can fix.
    """
    earlier = find_earlier_run(config, folder)
    if earlier is not None and earlier.done:  # a sweep that is continued
        print(f"{config.run_name()}: done before, in {earlier.path}")
        return
    with ExitStack() as ends:
        ends.enter_context(shown(config.trainer.progress))
        work = prepare()
        job = earlier or RunFolder.create(folder or new_path(Path(config.output_dir), work.name), to_plain(config))
        parts = make_parts(job, work.parts or {"": config}, resumed=earlier is not None)
        last = work.last_row(job) if earlier is not None else -1
        for part in parts:
            part.folder.forget_after(last)
        start_tracking(config, job, parts, ends, params=work.params)
        run = Run(job, parts, config.seed, resumed=earlier is not None, last_row=last)
        outcomes = work.carry_out(run)
        finished = [part for part in parts if part.name in outcomes]
        for part in finished:
            part.write_results(outcomes[part.name].metrics)
        for part in finished:
            part.finish()
        if len(finished) == len(parts) and not job.done:
            job.finish()
        for part in finished:
            show(part, outcomes[part.name])
        if len(finished) < len(parts):
            assert work.failure is not None
            raise work.failure()


def show(part: Part, outcome: Outcome) -> None:
    """Print the results, where they are and how to compare them; the run is done, so a screen that fails changes nothing."""
    try:
        outcome.show()
        print(f"run folder  {part.folder.path}")
        for page in sorted(part.folder.path.glob("latents*.html")):
            print(f"latents     {page}")
        if part.config.tracking.mlflow:
            print(f"compare     {how_to_compare(part.config)}")
    except Exception as error:
        print(f"crux: the results could not be printed ({error}); they are in {part.folder.path}", file=sys.stderr)
