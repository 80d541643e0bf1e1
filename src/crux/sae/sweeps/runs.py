"""The finished runs of a sweep, and what they differ in, from their run folders alone."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crux.config.errors import UserError
from crux.config.messages import nearest
from crux.runs.run_folder import RunFolder, comparable


class Run(NamedTuple):
    """A finished run of a sweep."""

    name: str
    """Its folder, within the sweep's."""
    config: dict[str, Any]
    metrics: dict[str, float]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def loss(self) -> str:
        return self.config["loss"]["name"]


def _asked(config: dict[str, Any]) -> str:
    """How sparse it was to be."""
    if (k := config.get("sae", {}).get("k")) is not None:
        return f"k={k}"
    target = config.get("target_l0")
    return f"λ={config['sparsity']:g}" if target is None else f"L0={target:g}"


ORDER = ("local", "e2e", "e2e_ds")
"""Losses in tables and figures; others follow by name. Ratios are to the first one that is there."""

EXPERIMENT, ARCHITECTURE, LOSS, HOOK_POINT = "experiment", "architecture", "loss", "hook point"
ASKED, STEPS = "asked for", "steps"


def _experiment(config: dict[str, Any]) -> str:
    """Of a toy model itself; empty where an SAE was trained."""
    return (config.get("toy") or {}).get("experiment", "")


SETTINGS: dict[str, Callable[[dict[str, Any]], str]] = {
    EXPERIMENT: _experiment,
    ARCHITECTURE: lambda c: c.get("sae", {}).get("name", "relu"),
    LOSS: lambda c: c["loss"]["name"],
    HOOK_POINT: lambda c: ", ".join(c.get("hook_points") or [c.get("hook_point") or ""]),
    ASKED: _asked,
    STEPS: lambda c: str(c.get("trainer", {}).get("max_steps", "")),
}
"""What runs of a sweep may differ in, besides the seed; a column where they do."""


def sweep_folder(outputs: Path, name: str) -> Path:
    """`<outputs>/sweeps/<name>`.

    Raises:
        UserError: where there is none, with the nearest.
    """
    folder = outputs / "sweeps" / name
    if not name or not folder.is_dir():
        there = sorted(path.name for path in (outputs / "sweeps").glob("*") if path.is_dir())
        raise UserError(
            f"sweep={name}: no such sweep in {outputs / 'sweeps'}; {nearest(name, there)}"
            f"there are {', '.join(there) or 'none'}"
        )
    return folder


def finished_runs(folder: Path) -> list[Run]:
    """The runs in a sweep's folder that have ended, by their settings and seed.

    Raises:
        UserError: where the folder has none.
    """
    found: list[Run] = []
    for path in folder.rglob("metrics.json"):
        run = RunFolder(path.parent)
        if not run.done:
            continue
        metrics = json.loads(path.read_text("utf-8"))
        found.append(Run(run.path.relative_to(folder).as_posix(), run.config(), metrics))
    if not found:
        raise UserError(f"no finished runs in {folder}")
    return sorted(
        found,
        key=lambda r: (
            _known(r)[ARCHITECTURE],
            rank(r.loss),
            r.config["sparsity"],
            list(_known(r).values()),
            r.seed,
            r.name,
        ),
    )


def rank(loss: str) -> tuple[int, str]:
    """Where a loss stands among the others, for sorting; further words may follow its name."""
    name = loss.partition(" ")[0]
    return (ORDER.index(name) if name in ORDER else len(ORDER), loss)


def _known(run: Run) -> dict[str, str]:
    return {title: value(run.config) for title, value in SETTINGS.items()}


def settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """What the runs differ in besides the seed, a column each: those of `SETTINGS`, and every other key that differs

    between runs which these cannot tell apart.
    """
    known = [_known(run) for run in runs]
    flat = [comparable(run.config) for run in runs]
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for titles, keys in zip(known, flat, strict=True):
        alike[tuple(titles.values())].append(keys)
    others = sorted(
        {
            key
            for group in alike.values()
            for key in {k for keys in group for k in keys} - {"seed"}
            if len({str(keys.get(key)) for keys in group}) > 1
        }
    )
    always = LOSS if not any(k[EXPERIMENT] for k in known) else EXPERIMENT
    shown = [title for title in SETTINGS if title == always or len({k[title] for k in known}) > 1]
    return [
        {title: titles[title] for title in shown} | {key: str(keys.get(key)) for key in others}
        for titles, keys in zip(known, flat, strict=True)
    ]
