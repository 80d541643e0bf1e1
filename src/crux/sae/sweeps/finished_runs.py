"""The finished runs of a sweep, and what they differ in, from their run folders alone."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from crux.config.errors import UserError
from crux.config.messages import nearest
from crux.runs.run_folder import RunFolder, comparable_keys

ORDER = ("local", "e2e", "e2e_ds")
"""Losses in tables and figures; others follow by name. Ratios are to the first one that is there."""

EXPERIMENT, ARCHITECTURE, LOSS, HOOK_POINT = "experiment", "architecture", "loss", "hook point"
ASKED, STEPS = "asked for", "steps"

Keys = Mapping[str, Any]
"""A configuration, flat: `sae.k` → 32. A key that an option does not have may be null or absent."""


def _sparsity_setting(keys: Keys) -> str:
    """Return how sparse the run was to be."""
    for key, shown in (("sae.k", "k={}"), ("target_l0", "L0={:g}"), ("sparsity", "λ={:g}")):
        if keys.get(key) is not None:
            return shown.format(keys[key])
    return ""


def _experiment(keys: Keys) -> str:
    """Return the name of the experiment that was made; empty if an SAE was trained."""
    sections = ("toy",) if keys.get("loss.name") else ("toy", "llc", "degeneracy", "interaction_basis")
    return next((name for section in sections if (name := keys.get(f"{section}.experiment"))), "")


SETTINGS: dict[str, Callable[[Keys], str]] = {
    EXPERIMENT: _experiment,
    ARCHITECTURE: lambda keys: keys.get("sae.name") or "relu",
    LOSS: lambda keys: keys.get("loss.name") or "",
    HOOK_POINT: lambda keys: ", ".join(keys.get("hook_points") or [keys.get("hook_point") or ""]),
    ASKED: _sparsity_setting,
    STEPS: lambda keys: str(keys.get("trainer.max_steps", "")),
}
"""What runs of a sweep may differ in, besides the seed; a column if they do."""


class FinishedRuns(NamedTuple):
    """Finished runs of a sweep: one row per run in each frame, named after its folder within the sweep's."""

    settings: pd.DataFrame
    """`SETTINGS` of each run."""
    keys: pd.DataFrame
    """Every key of the configurations, as text; "None" if it is null or absent."""
    metrics: pd.DataFrame
    """Every metric by its name in metrics.json; NaN if a run does not have it."""

    def key(self, name: str) -> pd.Series:
        """Return a column of `keys`, also if no run has it."""
        return pd.Series(self.keys.get(name, "None"), index=self.keys.index)

    def with_metrics(self, *names: str) -> "FinishedRuns":
        """Return the runs that have these metrics."""
        there = self.metrics.reindex(columns=list(names)).dropna().index
        return FinishedRuns(*(frame.loc[there] for frame in self))


def sweep_folder(outputs: Path, name: str) -> Path:
    """Return `<outputs>/sweeps/<name>`.

    Raises:
        UserError: if there is none, with the nearest.
    """
    folder = outputs / "sweeps" / name
    if not name or not folder.is_dir():
        there = sorted(path.name for path in (outputs / "sweeps").glob("*") if path.is_dir())
        raise UserError(
            f"sweep={name}: no such sweep in {outputs / 'sweeps'}; {nearest(name, there)}"
            f"there are {', '.join(there) or 'none'}"
        )
    return folder


def read_finished_runs(folder: Path) -> FinishedRuns:
    """Return the runs in a sweep's folder that have ended, ordered by their settings and seed.

    Raises:
        UserError: if the folder has none.
    """
    found = []
    for path in folder.rglob("metrics.json"):
        run = RunFolder(path.parent)
        if run.done:
            keys = {k: v for k, v in comparable_keys(run.read_config()).items() if not k.endswith("_target_")}
            settings = {title: value(keys) for title, value in SETTINGS.items()}
            name, metrics = run.path.relative_to(folder).as_posix(), json.loads(path.read_text("utf-8"))
            order = (
                settings[ARCHITECTURE],
                loss_order(settings[LOSS]),
                keys.get("sparsity") or 0.0,
                *settings.values(),
            )
            found.append(((*order, keys.get("seed") or 0, name), settings, keys, metrics))
    if not found:
        raise UserError(f"no finished runs in {folder}")
    order, settings, keys, metrics = zip(*sorted(found, key=lambda row: row[0]), strict=True)
    names = pd.Index([row[-1] for row in order], name="run")
    columns = sorted({key for row in keys for key in row})
    texts = [[str(row.get(key)) for key in columns] for row in keys]
    numbers = pd.DataFrame(list(metrics), index=names, dtype=float)
    return FinishedRuns(
        pd.DataFrame(list(settings), index=names), pd.DataFrame(texts, names, columns), numbers.sort_index(axis=1)
    )


def loss_order(loss: str) -> tuple[int, str]:
    """Return where a loss stands among the others, for sorting; further words may follow its name."""
    name = loss.partition(" ")[0]
    return (ORDER.index(name) if name in ORDER else len(ORDER), loss)


def differences(runs: FinishedRuns) -> pd.DataFrame:
    """Return what the runs differ in besides the seed, a column each.

    These are columns of `SETTINGS`, and every other key that differs between runs which those cannot tell apart.
    """
    settings, keys = runs.settings, runs.keys.drop(columns="seed", errors="ignore")
    differing = keys.groupby([settings[title] for title in settings]).nunique().gt(1).any()
    always = LOSS if set(settings[EXPERIMENT]) == {""} else EXPERIMENT
    shown = [title for title in settings if title == always or len(set(settings[title])) > 1]
    return pd.concat([settings[shown], keys.loc[:, differing]], axis=1)


def group_by_setting(rows: pd.DataFrame, *, by: pd.DataFrame) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """Yield each combination of settings, in the order in which they first appear, and the rows of the runs that have it."""
    for setting, group in rows.groupby([by[title] for title in by], sort=False):
        yield list(setting), group  # pyright: ignore[reportArgumentType]
