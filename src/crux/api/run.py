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
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.sae import SAE
from crux.sae.formats import saelens
from crux.subjects.load import load_subject
from crux.subjects.subject import Subject

TIME = r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_"
"""The beginning of the name of a run folder."""

OVERALL = re.compile(r"(?:^|.*/)final/\w+$")
"""Metrics of the whole evaluation, without those per position, later layer or hook point."""

HEADLINE = re.compile(
    r".*final/(ce_increase|kl|l0|loss_recovered_mean|explained_variance|norm_ratio|alive_heldout_frac|tokens_per_second|checks.*)$"
)
"""Metrics in the representation of a run."""


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
        """The name of the folder without the time, such as `e2e_ds_L6_s2.2`; after that of the job for one of its runs."""
        name = re.sub(f"^{TIME}", "", self.folder.name)
        parent = self.folder.parent
        return f"{Run(parent).name}/{name}" if (parent / "config.yaml").exists() else name

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
        """The runs of a job that trains several SAEs at once, by name, such as `sparsity=0.5`; empty for other jobs."""
        return {path.parent.name: Run(path.parent) for path in sorted(self.folder.glob("*/config.yaml"))}

    @property
    def metrics(self) -> dict[str, float]:
        """The final metrics by their names in metrics.json, such as `final/ce_increase`.

        For a job with several runs, each name begins with that of the run: `sparsity=0.5/final/ce_increase`.

        Raises:
            UserError: if the run is unfinished or has failed.
        """
        if self.runs:
            return {
                f"{name}/{metric}": value for name, run in self.runs.items() for metric, value in run.metrics.items()
            }
        path = self.folder / "metrics.json"
        if not path.exists():
            raise UserError(f"{self.folder} has no metrics: the run is {self._progress()}")
        return json.loads(path.read_text("utf-8"))

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
        """The trained SAEs by hook point; by run, or run and hook point, for a job with several runs. Empty if there are none."""
        if self.runs:
            return {
                name if len(run.saes) == 1 else f"{name}/{hook}": sae
                for name, run in self.runs.items()
                for hook, sae in run.saes.items()
            }
        return dict(self._load_saes())

    def _load_saes(self) -> Iterator[tuple[str, SAE]]:
        place = self.folder / "sae"
        for path in sorted([*place.glob("cfg.json"), *place.glob("*/cfg.json")]):
            sae, metadata = saelens.load_sae(path.parent)
            yield metadata.get("hook_name_out") or metadata["hook_name"], sae

    @property
    def sae(self) -> SAE:
        """The trained SAE, on the CPU.

        Raises:
            UserError: if the run has none or several.
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
        """The paths of the figures, by name; those of a job's runs begin with the name of the run."""
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
            found = f"{len(pages)} pages of latents: {', '.join(map(str, pages))}" if pages else "no page of latents"
            raise UserError(f"{self.folder} has {found}")
        return pages[0]

    @property
    def report(self) -> str:
        """The report of an experiment, in Markdown; empty if the run has none."""
        path = self.folder / "report.md"
        return path.read_text("utf-8") if path.exists() else ""

    def _progress(self) -> str:
        """Return the state, with the last step of a run that has not finished."""
        if self._files.done:
            return self.state
        rows = self._files.read_history()
        return f"{self.state}, with its last row at step {rows[-1]['step']}" if rows else self.state

    def _headline(self) -> dict[str, float]:
        """Return the metrics that the representation shows; none if the run has not finished."""
        if self.state != "finished":
            return {}
        return {name: value for name, value in self.metrics.items() if HEADLINE.match(name)}

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
    """Return the run in a folder: of a single run, of a sweep's job, or of one run of a job with several.

    An unfinished run is returned too; `run.state` and its representation say so.

    Raises:
        UserError: if the folder is not a run folder, with what it is instead.
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
    """Return all runs within a folder, by name of their folders; of a job with several runs these, and not the job."""
    runs = [Run(path.parent) for path in sorted(folder.rglob("config.yaml"))]
    return [run for run in runs if not run.runs]
