"""The finished runs of a sweep, read from their run folders, and the settings in which they differ."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from crux.config.errors import UserError
from crux.config.messages import suggest_nearest
from crux.runs.run_folder import RunFolder, comparable_keys

LOSS_ORDER = ("local", "e2e", "e2e_ds")
"""The order of losses in tables and figures; others follow by name. Ratios are relative to the first loss that is present."""

EXPERIMENT, ARCHITECTURE, LOSS, HOOK_POINT = "experiment", "architecture", "loss", "hook point"
SPARSITY_SETTING, STEPS = "λ, k or target L0", "steps"
"""Titles of the columns that hold the settings of runs."""

Keys = Mapping[str, Any]
"""A configuration by dotted keys, such as `sae.k` → 32. A key that an option does not have may be null or absent."""


def _describe_sparsity(keys: Keys) -> str:
    """Return k, the target L0 or λ of a run, whichever determines its sparsity."""
    for key, text in (("sae.k", "k={}"), ("target_l0", "L0={:g}"), ("sparsity", "λ={:g}")):
        if keys.get(key) is not None:
            return text.format(keys[key])
    return ""


def _find_experiment(keys: Keys) -> str:
    """Return the name of the experiment; empty if the job trained an SAE on a language model."""
    # a job that trains SAEs has a loss, and only the section `toy` says on which toy model
    sections = ("toy",) if keys.get("loss.name") else ("toy", "llc", "degeneracy", "interaction_basis")
    return next((name for section in sections if (name := keys.get(f"{section}.experiment"))), "")


SETTINGS: dict[str, Callable[[Keys], str]] = {
    EXPERIMENT: _find_experiment,
    ARCHITECTURE: lambda keys: keys.get("sae.name") or "relu",
    LOSS: lambda keys: keys.get("loss.name") or "",
    HOOK_POINT: lambda keys: ", ".join(keys.get("hook_points") or [keys.get("hook_point") or ""]),
    SPARSITY_SETTING: _describe_sparsity,
    STEPS: lambda keys: str(keys.get("trainer.max_steps", "")),
}
"""The settings in which runs of a sweep may differ, besides the seed: title of the column → its value for a configuration.

The settings that differ between the runs become columns of the tables."""


NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


class FinishedRuns(NamedTuple):
    """The finished runs of a sweep: each frame has one row per run, named after its folder."""

    settings: pd.DataFrame
    """The `SETTINGS` of each run."""
    keys: pd.DataFrame
    """All keys of the configurations, as text; "None" if a key is null or absent."""
    metrics: pd.DataFrame
    """All metrics by their names in metrics.json; NaN if a run does not have a metric."""

    def key(self, name: str) -> pd.Series:
        """Return a column of `keys`, which is "None" if no run has the key."""
        return pd.Series(self.keys.get(name, "None"), index=self.keys.index)

    def with_metrics(self, *names: str) -> "FinishedRuns":
        """Return the runs that have these metrics."""
        complete = self.metrics.reindex(columns=list(names)).dropna().index
        return FinishedRuns(*(frame.loc[complete] for frame in self))


def sweep_folder(outputs: Path, name: str) -> Path:
    """Return the folder `<outputs>/sweeps/<name>`.

    Raises:
        UserError: if no name is given, or if the folder does not exist; the message names the nearest sweep.
    """
    folder = outputs / "sweeps" / name
    sweeps = sorted(path.name for path in (outputs / "sweeps").glob("*") if path.is_dir())
    if not name:
        raise UserError(f"give sweep=<name>; in {outputs / 'sweeps'} there are {', '.join(sweeps) or 'none'}")
    if not folder.is_dir():
        raise UserError(
            f"sweep={name}: no such sweep in {outputs / 'sweeps'}; {suggest_nearest(name, sweeps)}"
            f"there are {', '.join(sweeps) or 'none'}"
        )
    return folder


def read_finished_runs(folder: Path) -> FinishedRuns:
    """Return the finished runs in a sweep's folder, ordered by settings and seed.

    Raises:
        UserError: if the folder has none.
    """
    rows = []
    for path in folder.rglob("metrics.json"):
        run = RunFolder(path.parent)
        if run.done:
            config = comparable_keys(run.read_config())
            keys = {key: value for key, value in config.items() if not key.endswith("_target_")}
            settings = {title: value(keys) for title, value in SETTINGS.items()}
            name, metrics = run.path.relative_to(folder).as_posix(), json.loads(path.read_text("utf-8"))
            sparsity = tuple(keys.get(key) or 0.0 for key in ("sae.k", "target_l0", "sparsity"))
            others = tuple(split_numbers(value) for value in settings.values())
            order = (settings[ARCHITECTURE], loss_order(settings[LOSS]), sparsity, others)
            rows.append(((*order, keys.get("seed") or 0, name), settings, keys, metrics))
    if not rows:
        raise UserError(f"no finished runs in {folder}")
    order, settings, keys, metrics = zip(*sorted(rows, key=lambda row: row[0]), strict=True)
    names = pd.Index([row[-1] for row in order], name="run")
    columns = sorted({key for row in keys for key in row})
    texts = [[str(row.get(key)) for key in columns] for row in keys]
    numbers = pd.DataFrame(list(metrics), index=names, dtype=float)
    return FinishedRuns(
        pd.DataFrame(list(settings), index=names), pd.DataFrame(texts, names, columns), numbers.sort_index(axis=1)
    )


def split_numbers(text: str) -> list[str | float]:
    """Return the sort key of a text with numbers, by which `blocks.2` comes before `blocks.10`: texts and numbers in turn."""
    return [float(part) if i % 2 else part for i, part in enumerate(NUMBER.split(text))]


def loss_order(loss: str) -> tuple[int, str]:
    """Return the sort key of a loss. Coefficients may follow its name, as in `e2e loss.kl=0.5`."""
    name = loss.partition(" ")[0]
    return (LOSS_ORDER.index(name) if name in LOSS_ORDER else len(LOSS_ORDER), loss)


def differences(runs: FinishedRuns) -> pd.DataFrame:
    """Return the settings in which the runs differ besides the seed, one column per setting.

    These are columns of `SETTINGS`, and every other key that differs between runs with the same `SETTINGS`. The loss, or the
    experiment, is a column even if it does not differ, so that every row has a name.
    """
    settings, keys = runs.settings, runs.keys.drop(columns="seed", errors="ignore")
    name = LOSS if set(settings[EXPERIMENT]) == {""} else EXPERIMENT
    titles = [title for title in settings if title == name or len(set(settings[title])) > 1]
    other_keys = keys.groupby([settings[title] for title in settings]).nunique().gt(1).any()
    return pd.concat([settings[titles], keys.loc[:, other_keys]], axis=1)


def group_by_setting(rows: pd.DataFrame, *, by: pd.DataFrame) -> Iterator[tuple[list[str], pd.DataFrame]]:
    """Yield each combination of settings, in the order of first appearance, with the rows of its runs."""
    for setting, group in rows.groupby([by[title] for title in by], sort=False):
        yield list(setting), group  # pyright: ignore[reportArgumentType]
