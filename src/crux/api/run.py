"""A run folder as an object: configuration, metrics, history, figures and the trained SAEs."""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from crux.config.errors import UserError
from crux.config.messages import suggest_nearest
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.sae import SAE
from crux.sae.belonging import saved_hooks
from crux.sae.formats import saelens
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject

START_TIME = r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_"
"""The time at which a run started, with which the name of its folder begins."""

OVERALL_METRICS = re.compile(r"(?:^|.*/)final/\w+$")
"""The names of metrics of the whole evaluation, without those of a single position, later layer or hook point."""

HEADLINE_METRICS = re.compile(
    r".*final/(ce_increase|kl|l0|loss_recovered_mean|explained_variance|norm_ratio|alive_heldout_frac|tokens_per_second|checks.*)$"
)
"""The names of the few metrics that the representation of a run shows, and that `compare` shows by default."""


class Metrics(dict[str, float]):
    """Metrics by their full names; the KeyError for a missing name says which name is meant."""

    def __missing__(self, name: str) -> float:
        full = f"final/{name.removeprefix('final/')}"
        raise KeyError(
            f"{name}: no such metric; {suggest_nearest(full, list(self))}there are {', '.join(self) or 'none'}"
        )


class Run:
    """One run, finished or not, read from its folder. Files are read when they are first needed.

    A job that trains several SAEs at once, one run per SAE (`sparsities=[…]`), has these in `runs`.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        """The run folder."""
        self._files = RunFolder(self.folder)

    @property
    def name(self) -> str:
        """The name of the run folder without the time, such as `e2e_ds_L6_s2.2`.

        One of several runs of a job has the name of the job in front: `local_L6/sparsity=5`.
        """
        return re.sub(f"^{START_TIME}", "", self.name_with_time)

    @property
    def name_with_time(self) -> str:
        """The name of the run folder, such as `2026-01-31_12-00-00_e2e_ds_L6_s2.2`; with the name of the job's folder as in `name`."""
        parent = self.folder.parent
        return f"{parent.name}/{self.folder.name}" if (parent / "config.yaml").exists() else self.folder.name

    @property
    def state(self) -> str:
        """`finished`, `unfinished`, or `failed` with the reason."""
        if self._files.done:
            return "finished"
        return f"failed: {self._files.failure_reason()}" if self._files.failed else "unfinished"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration, in nested dictionaries: `run.config["loss"]["name"]`."""
        return self._files.read_config()

    @property
    def runs(self) -> dict[str, "Run"]:
        """The runs of a job that trains several SAEs at once, by name, such as `sparsity=0.5`; empty for other jobs.

        They are in the order in which the configuration lists their values, `sparsities=[…]` or `ks=[…]`.
        """
        names = sorted(path.parent.name for path in self.folder.glob("*/config.yaml"))
        if not names:
            return {}
        values = self.config.get("sparsities") or self.config.get("ks") or []
        positions = {str(float(value)).removesuffix(".0"): i for i, value in enumerate(values)}
        names.sort(key=lambda name: positions.get(name.partition("=")[2], len(values)))
        return {name: Run(self.folder / name) for name in names}

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics by their names in metrics.json, such as `final/ce_increase`.

        For a job with several runs, each name begins with that of the run: `sparsity=0.5/final/ce_increase`.

        Raises:
            UserError: if the run is unfinished or has failed.
        """
        if self.runs:
            return Metrics(
                {f"{name}/{metric}": value for name, run in self.runs.items() for metric, value in run.metrics.items()}
            )
        path = self.folder / "metrics.json"
        if not path.exists():
            raise UserError(f"{self.folder} has no metrics: the run is {self._progress()}")
        return Metrics(json.loads(path.read_text("utf-8")))

    @property
    def history(self) -> pd.DataFrame:
        """The values that were logged during the training: one row per logged step, which is the index, and one column per value.

        For a job with several runs, each column begins with the name of the run: `sparsity=0.5/train/loss`.
        """
        if self.runs:
            return pd.concat([run.history.add_prefix(f"{name}/") for name, run in self.runs.items()], axis=1)
        rows = pd.DataFrame(self._files.read_history())
        return rows.groupby("step").first() if len(rows) else pd.DataFrame(index=pd.Index([], name="step"))

    @cached_property
    def saes(self) -> dict[str, SAE]:
        """The trained SAEs by the name of their hook point; empty if there are none.

        For a job with several runs, they are by the name of the run, such as `sparsity=0.5`; if a run has several SAEs, by both names,
        such as `sparsity=0.5/blocks.6.hook_resid_pre`.
        """
        if self.runs:
            return {
                name if len(run.saes) == 1 else f"{name}/{hook}": sae
                for name, run in self.runs.items()
                for hook, sae in run.saes.items()
            }
        return dict(self._load_saes())

    def _load_saes(self) -> Iterator[tuple[str, SAE]]:
        place = self.folder / "sae"  # itself the folder of the SAE, or the parent of a folder per SAE
        for path in sorted([*place.glob("cfg.json"), *place.glob("*/cfg.json")]):
            sae, metadata = saelens.load_sae(path.parent)
            _, write = saved_hooks(metadata)
            if write is None:
                raise UserError(f"{path}: the metadata lack the hook point (hook_name)")
            yield write, sae

    @property
    def sae(self) -> SAE:
        """The trained SAE, on the CPU.

        Raises:
            UserError: if the run has no SAE or several.
        """
        if not self.saes:
            reason = "it trains none" if self._files.done else f"it is {self._progress()}"
            raise UserError(f"{self.folder} has no SAE: {reason}")
        if len(self.saes) > 1:
            raise UserError(
                f"{self.folder} has {len(self.saes)} SAEs: use run.saes[…] with one of {', '.join(self.saes)}"
            )
        return next(iter(self.saes.values()))

    def load_subject(self, *, device: str = "cpu") -> Subject:
        """Load the language model on which the run's SAEs were trained, with the same weight processing.

        Raises:
            UserError: if the run has no language model, or it cannot be loaded.
        """
        model = self.config.get("model", {})
        if "process_weights" not in model:
            raise UserError(f"{self.folder} has no language model as its subject")
        source = Path(model["path"]) if model.get("path") is not None else model["name"]
        return load_subject(source, process_weights=model["process_weights"], device=device)

    @property
    def figures(self) -> dict[str, Path]:
        """The paths of the figures by name. For a job with several runs, the names of their figures begin with that of the run."""
        figures = {path.stem: path for path in sorted((self.folder / "figures").glob("*.png"))}
        return figures | {
            f"{name}/{stem}": path for name, run in self.runs.items() for stem, path in run.figures.items()
        }

    @property
    def latents_page(self) -> Path:
        """The path of latents.html, which shows what some latents respond to.

        Raises:
            UserError: if the run has no such page, or one for each of several SAEs.
        """
        pages = sorted([*self.folder.glob("latents*.html"), *self.folder.glob("*/latents*.html")])
        if len(pages) != 1:
            pages_found = (
                f"{len(pages)} pages of latents: {', '.join(map(str, pages))}" if pages else "no page of latents"
            )
            raise UserError(f"{self.folder} has {pages_found}")
        return pages[0]

    @property
    def report(self) -> str:
        """The report of an experiment, in Markdown; empty if the run has none."""
        path = self.folder / "report.md"
        return path.read_text("utf-8") if path.exists() else ""

    def _progress(self) -> str:
        """Return the state; for a run that has not finished, also the last step in its history."""
        if self._files.done:
            return self.state
        rows = self._files.read_history()
        return f"{self.state}, with its last row at step {rows[-1]['step']}" if rows else self.state

    def _headline(self) -> dict[str, float]:
        """Return the metrics that the representation shows; none if the run has not finished."""
        if self.state != "finished":
            return {}
        return {name: value for name, value in self.metrics.items() if HEADLINE_METRICS.match(name)}

    def __repr__(self) -> str:
        lines = [f"Run {self.name}: {self._progress()}", f"  folder: {self.folder}"]
        lines += [f"  {name}: {value:.4g}" for name, value in self._headline().items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(name)}</td><td>{value:.4g}</td></tr>"
            for name, value in self._headline().items()
        )
        return f"<b>{escape(self.name)}</b>: {escape(self._progress())}<br><code>{escape(str(self.folder))}</code><table>{rows}</table>"


def load_run(folder: str | Path) -> Run:
    """Return the run whose folder is given: a single run, a job of a sweep, or one of several runs of a job.

    An unfinished run is returned too; `run.state` and its representation say so.

    Raises:
        UserError: if the folder is not a run folder; the message says what it is instead.
    """
    path = Path(folder)
    if (path / "config.yaml").is_file():
        return Run(path)
    if not path.exists():
        raise UserError(f"{path}: no such folder")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; a run folder is needed")
    if (path / "cfg.json").exists():
        raise UserError(f"{path}: holds an SAE; use crux.load_sae, or load the run folder {path.parent}")
    runs = find_runs(path)
    if runs:
        raise UserError(
            f"{path}: holds {len(runs)} runs, such as {runs[-1].folder}; load one of them, or use crux.compare"
        )
    raise UserError(f"{path}: not a run folder (it has no config.yaml)")


def find_runs(folder: Path) -> list[Run]:
    """Return the runs whose folders are directly in a folder, such as that of a sweep. A job with several runs is replaced by these.

    Deeper folders are not searched, because a folder such as /tmp may hold many runs that do not belong together.
    """
    jobs = [Run(path.parent) for path in sorted(folder.glob("*/config.yaml"))]
    return [run for job in jobs for run in (job.runs.values() or [job])]
