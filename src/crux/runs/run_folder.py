"""The run folder: everything that a run leaves, in plain files, each written whole or not at all."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from crux.config.errors import UserError
from crux.config.files import write_text

NOT_COMPARED = ("resume", "resume_from", "retry_failed", "report_l0", "tracking", "output_dir", "cache")
"""Keys that may differ between a run and its going on; so may `trainer.progress`."""


class RunFolder:
    """`config.yaml`, `history.jsonl`, `metrics.json`, `sae/`, `figures/`, `checkpoints/last.ckpt`, and `DONE` at the end.

    A sweep's job, or a run beside others, that failed leaves `FAILED` instead: the reason in its first line, and for an error
    of ours the traceback.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """A folder with the resolved configuration in it; what an earlier run left there is not continued."""
        path.mkdir(parents=True, exist_ok=True)
        for name in ("DONE", "FAILED", "history.jsonl", "mlflow_run_id", "checkpoints/last.ckpt"):
            (path / name).unlink(missing_ok=True)
        folder = cls(path)
        for earlier in (folder.programs, folder.pieces):
            shutil.rmtree(earlier, ignore_errors=True)
        (path / "figures").mkdir(exist_ok=True)
        write_text(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return folder

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def programs(self) -> Path:
        """Where a toy experiment keeps what it has trained, or is training."""
        return self.path / "programs"

    @property
    def pieces(self) -> Path:
        """Where an experiment keeps the pieces of its work that are computed, until it is done."""
        return self.path / "pieces"

    @property
    def begun(self) -> bool:
        """Whether there is something to continue."""
        return self.checkpoint.exists() or self.programs.exists() or self.pieces.exists()

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @property
    def failed(self) -> bool:
        return (self.path / "FAILED").exists()

    def failure(self) -> str:
        """Why it failed, in one line."""
        return (self.path / "FAILED").read_text("utf-8").partition("\n")[0]

    def fail(self, reason: str, *, details: str) -> None:
        """Marks a sweep's job as failed, until it is asked for again."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "FAILED", f"{reason}\n{details}")

    def forget_failure(self) -> None:
        (self.path / "FAILED").unlink(missing_ok=True)

    def part(self, name: str, config: Mapping[str, Any], *, anew: bool) -> "RunFolder":
        """The folder of one of a job's runs: to be continued, or created if it is not there or is to be `anew`."""
        folder = RunFolder(self.path / name)
        if anew or not (folder.path / "config.yaml").exists():
            return RunFolder.create(folder.path, config)
        folder.forget_failure()  # it is tried again
        return folder

    def config(self) -> dict[str, Any]:
        """The configuration that the run was started with; UserError where the file is broken."""
        path = self.path / "config.yaml"
        try:
            found = yaml.safe_load(path.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({' '.join(str(error).split())})") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} cannot be read (it holds no keys)")
        return found

    def add_row(self, step: int, row: dict[str, float]) -> None:
        """A line of the history."""
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **row}) + "\n")

    def history(self) -> list[dict[str, float]]:
        """Return the rows of the history."""
        path = self.path / "history.jsonl"
        lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut the last one

    def forget_after(self, step: int) -> None:
        """Drops the rows that a killed run wrote after its last checkpoint: they come again."""
        rows = [row for row in self.history() if row["step"] <= step]
        write_text(self.path / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        write_text(self.path / "metrics.json", json.dumps(dict(metrics), indent=1) + "\n")

    def discard_unstarted(self) -> None:
        """Removes the folder where nothing was trained yet: a mistake leaves no half-made run behind."""
        if not self.checkpoint.exists() and not self.history():
            shutil.rmtree(self.path)

    def finish(self) -> None:
        """Mark the run as done."""
        write_text(self.path / "DONE", time.strftime("%Y-%m-%d %H:%M:%S\n"))
        shutil.rmtree(self.pieces, ignore_errors=True)


def new_path(outputs: Path, name: str) -> Path:
    """`<outputs>/runs/<time>_<name>`, numbered where two runs start within a second."""
    stem = outputs / "runs" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{name}"
    path, n = stem, 1
    while path.exists():
        n += 1
        path = stem.with_name(f"{stem.name}-{n}")
    return path


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that must be the same for a run to go on, flat."""

    def flat(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return found

    found = flat({k: v for k, v in config.items() if k not in NOT_COMPARED}, "")
    found.pop("trainer.progress", None)
    return found


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """`key: a's value / b's value` for each key in which two configurations differ."""
    left, right = comparable(a), comparable(b)
    keys = sorted(left.keys() | right.keys())
    return [f"{k}: {left.get(k)} / {right.get(k)}" for k in keys if left.get(k) != right.get(k)]


def find_unfinished(outputs: Path, config: Mapping[str, Any]) -> RunFolder:
    """The newest run without DONE whose configuration is this one.

    Raises:
        UserError: where there is none.
    """
    starts = [(p.parent.name[:19], p.stat().st_mtime_ns, p.parent) for p in (outputs / "runs").glob("*/config.yaml")]
    for *_, path in sorted(starts, reverse=True):  # by the time in the name, and within one second by the file's
        folder = RunFolder(path)
        if folder.done:
            continue
        try:
            same = not differing(folder.config(), config)
        except UserError:
            continue  # not a configuration that crux wrote whole
        if same:
            return folder
    raise UserError(f"resume=true: no unfinished run with this configuration in {outputs / 'runs'}")


def same_run(path: Path, config: Mapping[str, Any]) -> RunFolder | None:
    """What a sweep's earlier start left of this very job in its folder, finished or not; None where it left nothing to go on with.

    Raises:
        UserError: where the folder holds a finished run of another configuration, which would be overwritten.
    """
    folder = RunFolder(path)
    try:
        differences = differing(folder.config(), config) if (path / "config.yaml").exists() else ["no config.yaml"]
    except UserError:
        return None
    if folder.done and differences:
        raise UserError(
            f"{path} holds a finished run of another configuration (there / here): {'; '.join(differences)}; "
            "give this sweep another sweep_name, or remove that folder"
        )
    return folder if not differences and (folder.done or folder.begun) else None


def named_unfinished(path: Path, config: Mapping[str, Any]) -> RunFolder:
    """The run in `path`, to be continued.

    Raises:
        UserError: where it is none, is finished, or was started with another configuration.
    """
    folder = RunFolder(path)
    if not (path / "config.yaml").exists():
        raise UserError(f"resume_from={path}: no run folder (it has no config.yaml)")
    if folder.done:
        raise UserError(f"resume_from={path}: that run is finished")
    if differences := differing(folder.config(), config):
        raise UserError(f"resume_from={path}: its configuration differs (there / here): {'; '.join(differences)}")
    return folder
