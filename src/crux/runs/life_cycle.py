"""The life cycle of a job: look for an earlier run, create the folder, start tracking, execute, write the results, show them."""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crux.config.errors import UserError
from crux.config.messages import explain_user_error
from crux.config.progress import show_progress
from crux.config.schema import Job, to_plain
from crux.runs.earlier_run import take_earlier_run
from crux.runs.final_metrics import find_non_finite
from crux.runs.new_run import create_new_run
from crux.runs.outbox import OUTBOX_OF_PROCESS
from crux.runs.record import TextDataset, read_run_id
from crux.runs.run_folder import RunFolder
from crux.runs.tracked_run import TrackedRun, create_runs, list_deliveries, start_tracking
from crux.runs.tracking import explain_comparison, flush_at_end, send_left


class ActiveRun(NamedTuple):
    """A job while it runs."""

    folder: RunFolder
    tracked_runs: Sequence[TrackedRun]
    """The runs that are reported: one, unless the job trains many SAEs at once."""
    seed: int
    resumed: bool
    """True if the job continues an earlier start."""
    last_row: int
    """Step of the last history row that is kept from an earlier start; -1 if no row is."""

    @property
    def progress(self) -> bool:
        """True if progress bars are shown."""
        return self.tracked_runs[0].config.trainer.progress

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Add a row to the history of each run, and to MLflow, unless an earlier start added it."""
        if step > self.last_row:
            for run in self.tracked_runs:
                run.add_row(step, row)

    def abandon(self) -> None:
        """End the MLflow runs as failed, for a job that cannot end by itself."""
        for run in self.tracked_runs:
            if run.delivery is not None:
                run.delivery.end("FAILED")
        OUTBOX_OF_PROCESS.flush(stopped=True)


class RunOutcome(NamedTuple):
    """The final metrics of one run, and a function that prints them."""

    metrics: Mapping[str, float]
    """Names and values as written to metrics.json."""
    show: Callable[[], None]
    description: str | None = None
    """The same as a table in Markdown, which MLflow shows as the description of the run; None: the run's report.md, if there is one."""


@dataclass(frozen=True)
class PreparedJob:
    """A job with everything loaded that it needs, ready to be executed."""

    name: str
    """Name of the run folder, after the time."""
    execute: Callable[[ActiveRun], Mapping[str, RunOutcome]]
    """A function that returns the outcome of each run by the run's name; a run without an outcome has failed."""
    last_row: Callable[[RunFolder], int]
    """A function that returns the step of the last history row to keep when an earlier start is continued."""
    params: Mapping[str, object]
    """Parameters for MLflow, in addition to those of the configuration."""
    run_configs: Mapping[str, Job]
    """The configuration of each run by the name of its folder; empty if the job is a single run."""
    dataset: TextDataset | None = None
    """The text that the job is trained on; None if it has none."""
    failure: Callable[[], UserError] | None = None
    """A function that returns the error to raise if some runs have no outcome; None if every run has one."""


def run_job(config: Job, *, folder: Path | None, prepare: Callable[[], PreparedJob]) -> RunFolder:
    """Run a job from start to end, or continue an earlier start of it; return its run folder.

    Args:
        folder: the run folder, if a sweep has assigned one; None: a new one.
        prepare: loads what the job needs. It runs before the run folder is created, so that a mistake of the user leaves no folder.

    Raises:
        UserError: for a problem that the user can fix.
    """
    with ExitStack() as ends:
        earlier = take_earlier_run(config, folder, ends)
        if earlier is not None and earlier.done:  # a sweep that is continued, or a run that was killed after its end
            print(f"{config.run_name()}: done before, in {earlier.path}")
            with keep_done(earlier):
                send_left(config, earlier)
                ends.close()
            return earlier
        ends.enter_context(show_progress(config.trainer.progress))
        job = prepare()
        known = earlier.path if earlier is not None else folder
        run_id = read_run_id(known) if known is not None else None
        place = earlier or create_run_folder(config, folder, ends, name=job.name)
        runs = create_runs(place, job.run_configs or {"": config}, resumed=earlier is not None, earlier_id=run_id)
        last = job.last_row(place) if earlier is not None else -1
        if earlier is not None:
            place.renew_config(to_plain(config))
        for run in runs:
            run.folder.drop_rows_after(last)
        ends.enter_context(flush_at_end(config, lambda: list_deliveries(runs)))
        start_tracking(config, place, runs, ends, params=job.params, dataset=job.dataset, earlier_id=run_id)
        try:
            outcomes = job.execute(ActiveRun(place, runs, config.seed, resumed=earlier is not None, last_row=last))
        except (KeyboardInterrupt, SystemExit) as stop:
            if folder is None:  # the job of a sweep is continued by starting the sweep again
                stop.add_note(f"the same command with resume=true continues {place.path}")
            raise
        broken = fail_broken_runs(runs, outcomes)
        finished = [run for run in runs if run.name in outcomes and not run.failed]
        for run in finished:
            run.write_results(outcomes[run.name].metrics, description=outcomes[run.name].description)
        for run in finished:
            with keep_done(run.folder):
                run.finish()
        if len(finished) == len(runs):
            with keep_done(place):
                if not place.done:
                    place.finish()
                ends.close()
        for run in finished:
            show_outcome(run, outcomes[run.name])
        if broken:
            raise UserError("; ".join(broken))
        if len(finished) < len(runs):
            assert job.failure is not None
            raise job.failure()
        with keep_done(place):
            OUTBOX_OF_PROCESS.print_unsent(list_deliveries(runs))
    return place


@contextmanager
def keep_done(folder: RunFolder) -> Iterator[None]:
    """Print an error of the block instead of raising it if the run is done: nothing that fails after its end makes it a failure."""
    try:
        yield
    except Exception as error:
        if not folder.done:
            raise
        reason = explain_user_error(error, overrides=()) or traceback.format_exc()
        print(f"crux: {folder.path.name} is done, but: {reason}", file=sys.stderr)


def fail_broken_runs(runs: Sequence[TrackedRun], outcomes: Mapping[str, RunOutcome]) -> list[str]:
    """Mark the runs with a final metric that is not finite as failed, and return their errors; the other runs of the job are finished.

    Raises:
        NonFiniteMetricsError: if the job itself is such a run.
    """
    errors: list[str] = []
    for run in runs:
        if run.name in outcomes and (error := find_non_finite(outcomes[run.name].metrics)) is not None:
            if not run.name:
                raise error
            run.fail(error)
            errors.append(f"{run.name}: {error}")
    return errors


def create_run_folder(config: Job, folder: Path | None, ends: ExitStack, *, name: str) -> RunFolder:
    """Create the folder of a new run, locked until `ends` is closed.

    Args:
        folder: the run folder, if a sweep has assigned one, which is locked already; None: a new one.
        name: name of a new run folder, after the time.
    """
    if folder is not None:
        return RunFolder.create(folder, to_plain(config))
    return ends.enter_context(create_new_run(Path(config.output_dir), name, to_plain(config)))


def show_outcome(run: TrackedRun, outcome: RunOutcome) -> None:
    """Print the results, their place and how to compare them. The run is done, so an output that fails changes nothing."""
    try:
        outcome.show()
        print(f"run folder  {run.folder.path}")
        for page in sorted(run.folder.path.glob("latents*.html")):
            print(f"latents     {page}")
        for label, text in explain_comparison(run.config, run.delivery).items():
            print(f"{label:<11} {text}")
    except Exception as error:
        print(f"crux: the results could not be printed ({error}); they are in {run.folder.path}", file=sys.stderr)
