"""The run folder: the configuration, history, metrics and files of one run, each file written completely or not at all."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from crux.config.errors import UserError
from crux.config.files import remove_temporaries, write_text
from crux.runs.history import History
from crux.runs.plain_yaml import read_plain_yaml

KEYS_NOT_COMPARED = (
    "resume", "resume_from", "retry_failed", "report_l0", "report_geometry", "tracking", "output_dir", "cache",
)  # fmt: skip
"""Keys that may differ when a run is resumed; `trainer.progress` may differ too."""


class RunFolder:
    """A folder with `config.yaml`, `history.jsonl`, `metrics.json`, `sae/`, `figures/`, `checkpoints/last.ckpt`, and `DONE` at the end.

    A failed job of a sweep, or a failed run of a job with several runs, has `FAILED` instead of `DONE`: the first line is the reason,
    and for a bug in crux the traceback follows.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.history = path, History(path)

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> "RunFolder":
        """Create the files of a new run in a folder, and remove from it all files from which an earlier run could be resumed."""
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        for name in ("DONE", "FAILED", "history.jsonl", "history.crc", "mlflow_run_id"):
            (path / name).unlink(missing_ok=True)
        for subfolder in (folder.checkpoint.parent, folder.programs, folder.intermediate):
            shutil.rmtree(subfolder, ignore_errors=True)
        remove_temporaries(path, below=True)
        (path / "figures").mkdir(exist_ok=True)
        folder.write_config(config)
        return folder

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def programs(self) -> Path:
        """The folder in which a toy experiment keeps its trained models and checkpoints."""
        return self.path / "programs"

    @property
    def intermediate(self) -> Path:
        """The folder in which an experiment keeps intermediate results until it is done."""
        return self.path / "pieces"

    @property
    def resumable(self) -> bool:
        """True if a checkpoint or intermediate results exist from which the run can be continued."""
        return self.has_checkpoint or self.programs.exists() or self.intermediate.exists()

    @property
    def has_checkpoint(self) -> bool:
        """True if there is a checkpoint, or the one before it."""
        return any(self.checkpoint.parent.glob("*.ckpt"))

    @property
    def done(self) -> bool:
        """True if the run has finished."""
        return (self.path / "DONE").is_file()

    @property
    def failed(self) -> bool:
        """True if the run has failed and has not been started again."""
        return (self.path / "FAILED").is_file()

    def advice_to_train_further(self) -> str:
        """Return how to train the SAEs of a finished run further, for the end of a message; nothing if the run has no SAE."""
        saved = [path.parent for path in sorted((self.path / "sae").rglob("cfg.json"))]
        if not saved:
            return ""
        more = f" (or another of its {len(saved)} SAEs)" if len(saved) > 1 else ""
        return f"; a new run with sae.start_from={saved[0]}{more} trains its SAE further"

    def failure_reason(self) -> str:
        """Return the reason of the failure, in one line."""
        return (self.path / "FAILED").read_text("utf-8").partition("\n")[0]

    def fail(self, reason: str, *, details: str) -> None:
        """Mark the run as failed."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "FAILED", f"{reason}\n{details}")

    def clear_failure(self) -> None:
        """Remove the mark of a failed run, so that it is started again."""
        (self.path / "FAILED").unlink(missing_ok=True)

    def open_subfolder(self, name: str, config: Mapping[str, Any], *, resumed: bool) -> "RunFolder":
        """Return the folder of one of the job's runs. A resumed job keeps the folder that exists; otherwise a new one is created.

        Raises:
            UserError: if the folder is damaged or has another configuration.
        """
        folder = RunFolder(self.path / name)
        if not resumed or not (folder.path / "config.yaml").exists():
            return RunFolder.create(folder.path, config)
        folder.check_kinds()
        if differences := list_differences(folder.read_config(), config):
            raise UserError(f"{folder.path / 'config.yaml'} was changed (there / here): {'; '.join(differences)}")
        folder.renew_config(config)
        folder.clear_failure()  # the run is tried again
        return folder

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration of the run."""
        write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))

    def renew_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration of a run that is continued, which may differ, or be damaged, in keys that are not compared."""
        self.write_config({**config, "resume": False, "resume_from": None})

    def read_config(self) -> dict[str, Any]:
        """Return the configuration with which the run was started.

        Raises:
            UserError: if the file cannot be read.
        """
        return read_plain_yaml(self.path / "config.yaml")

    def check_kinds(self) -> None:
        """Check that no file of the run is a folder and no folder is a file.

        Raises:
            UserError: that names the first one.
        """
        for name in ("config.yaml", "history.jsonl", "history.crc", "metrics.json", "mlflow_run_id", "DONE", "FAILED"):
            if (self.path / name).exists() and not (self.path / name).is_file():
                raise UserError(f"{self.path / name} must be a file; remove it")
        for path in self.path.rglob("*.ckpt"):
            if not path.is_file():
                raise UserError(f"{path} must be a file; remove it")
        for name in ("checkpoints", "programs", "pieces", "figures", "sae"):
            if (self.path / name).exists() and not (self.path / name).is_dir():
                raise UserError(f"{self.path / name} must be a folder; remove it")

    def add_row(self, step: int, row: Mapping[str, float]) -> None:
        """Append a row to the history."""
        self.history.add(step, row)

    def read_history(self) -> list[dict[str, float]]:
        """Return the rows of the history.

        Raises:
            UserError: if a line is not a row of numbers.
        """
        return self.history.read()

    def drop_rows_after(self, step: int) -> None:
        """Remove the rows that a killed run wrote after this step, its last checkpoint; the resumed run writes them again.

        Raises:
            UserError: if one of the other rows is damaged.
        """
        self.history.keep_until(step)

    def write_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write metrics.json."""
        write_text(self.path / "metrics.json", json.dumps(dict(metrics), indent=1) + "\n")

    def remove_if_unstarted(self) -> None:
        """Remove the folder if nothing has been trained, so that a failed start leaves no incomplete run."""
        if not self.has_checkpoint and not self.read_history():
            shutil.rmtree(self.path)

    def finish(self) -> None:
        """Mark the run as done."""
        self.checkpoint.with_name("previous.ckpt").unlink(missing_ok=True)
        write_text(self.path / "DONE", time.strftime("%Y-%m-%d %H:%M:%S\n"))
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Remove what only an unfinished run needs, if the run is done, and the temporary files of killed processes."""
        remove_temporaries(self.path, below=True)
        if self.done:
            shutil.rmtree(self.intermediate, ignore_errors=True)


def comparable_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys of a configuration, with their values, that must be equal for a run to be resumed."""

    def flatten(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in section.items():
            keys |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
        return keys

    keys = flatten({key: value for key, value in config.items() if key not in KEYS_NOT_COMPARED}, "")
    keys.pop("trainer.progress", None)
    return keys


def list_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return `key: value in a / value in b` for each key in which two configurations differ."""
    left, right = comparable_keys(a), comparable_keys(b)
    keys = sorted(left.keys() | right.keys())
    return [f"{k}: {left.get(k)} / {right.get(k)}" for k in keys if left.get(k) != right.get(k)]


def list_unfinished(outputs: Path, config: Mapping[str, Any]) -> list[RunFolder]:
    """Return the runs without DONE that have this configuration, the newest first."""
    configs = [path for path in (outputs / "runs").glob("*/config.yaml") if not path.parent.name.startswith(".")]
    starts = [(path.parent.name[:19], path.stat().st_mtime_ns, path.parent) for path in configs]
    unfinished: list[RunFolder] = []
    # by the time in the folder's name (seconds), then by that of the file
    for *_, path in sorted(starts, reverse=True):
        folder = RunFolder(path)
        if folder.done:
            continue
        try:
            same = not list_differences(folder.read_config(), config)
        except UserError:
            continue  # the file is incomplete
        if same:
            unfinished.append(folder)
    return unfinished


def find_unfinished(outputs: Path, config: Mapping[str, Any]) -> RunFolder:
    """Return the newest run without DONE that has this configuration.

    Raises:
        UserError: if there is none.
    """
    if unfinished := list_unfinished(outputs, config):
        return unfinished[0]
    raise UserError(f"resume=true: no unfinished run with this configuration in {outputs / 'runs'}")


def find_same_run(path: Path, config: Mapping[str, Any]) -> RunFolder | None:
    """Return the run in the folder of a sweep's job, if it has this configuration and is finished or can be resumed; else None.

    Raises:
        UserError: if the folder holds a finished run with another configuration, which would be overwritten.
    """
    folder = RunFolder(path)
    try:
        differences = (
            list_differences(folder.read_config(), config) if (path / "config.yaml").exists() else ["no config.yaml"]
        )
    except UserError:
        return None
    if folder.done and differences:
        raise UserError(
            f"{path} holds a finished run with another configuration (there / here): {'; '.join(differences)}; "
            f"give this sweep another sweep_name, or remove that folder{folder.advice_to_train_further()}"
        )
    return folder if not differences and (folder.done or folder.resumable) else None


def open_unfinished(path: Path, config: Mapping[str, Any]) -> RunFolder:
    """Return the run in `path`, to be resumed.

    Raises:
        UserError: if it is no run folder, is finished, or was started with another configuration.
    """
    folder = RunFolder(path)
    if not (path / "config.yaml").exists():
        raise UserError(f"resume_from={path}: not a run folder (it has no config.yaml)")
    if folder.done:
        raise UserError(f"resume_from={path}: that run is finished{folder.advice_to_train_further()}")
    if differences := list_differences(folder.read_config(), config):
        raise UserError(f"resume_from={path}: its configuration differs (there / here): {'; '.join(differences)}")
    return folder
