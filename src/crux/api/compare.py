"""Compare runs in a table: the keys in which their configurations differ, and their final metrics."""

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from crux.api.run import HEADLINE_METRICS, OVERALL_METRICS, Run, find_runs, load_run
from crux.config.errors import UserError
from crux.config.messages import suggest_nearest
from crux.runs.run_folder import comparable_keys

STATE = "state"


def compare(
    runs: Sequence[Run | str | Path] | Run | str | Path,
    *,
    metrics: Sequence[str] | Literal["all"] | None = None,
    keys: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return a table with one row per run, whose index is the run's name; if two names are equal, all names have the time in front.

    The columns are the keys in which the configurations differ, then final metrics. A run without metrics has NaN in their columns. If
    a run is unfinished or has failed, a last column `state` says so.

    Args:
        runs: runs, run folders, folders of sweeps, or patterns such as `outputs/runs/*e2e*`. A job with several runs has a row for each.
        metrics: names of metrics, with or without `final/`. If not given: the few that the representation of a run shows; "all": all
            metrics of the whole evaluation. Metrics of a single position, later layer or hook point are shown only by name.
        keys: dotted keys of the configuration, such as `loss.name`; those that differ if not given.

    Raises:
        UserError: if there is no run, or no run has one of the metrics or keys.
    """
    items = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    by_folder = {run.folder.resolve(): run for item in items for run in _expand(item)}  # items may overlap
    if not by_folder:
        raise UserError("crux.compare: no runs given")
    compared = list(by_folder.values())
    configs = pd.DataFrame([_flat_config(run) for run in compared], dtype=object)
    results = pd.DataFrame([dict(run.metrics) if run.state == "finished" else {} for run in compared], dtype=float)
    states = [run.state for run in compared]
    parts = [configs[_choose_keys(configs, keys)], results[_choose_metrics(results, metrics)]]
    if set(states) != {"finished"}:
        parts.append(pd.DataFrame({STATE: states}))
    table = pd.concat(parts, axis=1)
    table.index = pd.Index(_unique_names(compared), name="run")
    return table.infer_objects()


def _expand(item: Run | str | Path) -> Iterator[Run]:
    """Yield the runs that an item of `compare` stands for."""
    if isinstance(item, Run):
        yield from item.runs.values() or [item]
    elif any(character in str(item) for character in "*?[") and not Path(item).exists():
        paths = [Path(path) for path in sorted(glob(str(item))) if Path(path).is_dir()]
        if not paths:
            raise UserError(f"{item}: no folder matches")
        for path in paths:
            yield from _expand(path)
    elif not (Path(item) / "config.yaml").exists() and (runs := find_runs(Path(item))):
        yield from runs
    else:
        yield from _expand(load_run(item))


def _flat_config(run: Run) -> dict[str, Any]:
    """Return the configuration by dotted keys, with lists as tuples, and without the names of classes in `_target_`."""
    keys = {key: value for key, value in comparable_keys(run.config).items() if not key.endswith("_target_")}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}


def _choose_keys(configs: pd.DataFrame, keys: Sequence[str] | None) -> list[str]:
    if keys is None:
        return [
            key for key in configs if len(set(map(repr, configs[key]))) > 1
        ]  # repr: not every value can be in a set
    return [_check_name(key, list(configs), "key of these configurations") for key in keys]


def _choose_metrics(results: pd.DataFrame, metrics: Sequence[str] | Literal["all"] | None) -> list[str]:
    if metrics is None:
        return [name for name in results if HEADLINE_METRICS.match(name)]
    if metrics == "all":
        return [name for name in results if OVERALL_METRICS.fullmatch(name)]
    full = [name if "final/" in name else f"final/{name}" for name in metrics]
    return [_check_name(name, list(results), "metric of these runs") for name in full]


def _check_name(name: str, allowed: list[str], kind: str) -> str:
    if name not in allowed:
        raise UserError(
            f"{name}: not a {kind}; {suggest_nearest(name, allowed)}there are {', '.join(sorted(allowed)) or 'none'}"
        )
    return name


def _unique_names(runs: Sequence[Run]) -> list[str]:
    """Return the names of the runs; if two are equal, all names with the time; if two of these are equal too, all folders."""
    for names in ([run.name for run in runs], [run.name_with_time for run in runs]):
        if len(set(names)) == len(names):
            return names
    return [str(run.folder) for run in runs]
