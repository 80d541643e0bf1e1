"""Damage the files from which a job is resumed, and resume it.

    python -m tests.campaigns.checkpoints --cases 500 --seed 0

Each job is stopped once between two checkpoints. A case copies its outputs, changes one file (bytes, cuts, content of other kinds, folders,
other runs' files), and resumes. It holds if crux refuses in one line that names the file, or continues and ends exactly like an
uninterrupted job. Nothing in a file may be executed.
"""

import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from tests.campaigns.finished_run import compare_jobs, read_job
from tests.campaigns.forks import CommandOutcome, import_everything, run_command
from tests.campaigns.outcomes import Outcomes, run_campaign
from tests.campaigns.resumable_jobs import JOBS, shorten_sources

STOPPED_JOBS = ("local", "jumprelu", "many", "toy", "llc", "pretrain")
"""The jobs that are stopped; together they have every kind of file from which a job is resumed."""

TRAP = "/tmp/crux_campaign_executed"
"""A file that code in a damaged file would create."""


class _Trap:
    """An object whose unpickling would create a file."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (TRAP,)


class StoppedJob:
    """A job that is stopped between two checkpoints, and the same job without a stop."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.place = name, folder / name
        self.environment = {
            "CRUX_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        whole = self.run(self.place / "whole")
        assert whole.code == 0, whole.err
        self.whole = read_job(self.place / "whole" / "outputs")
        self.stop()

    def run(self, place: Path, *more: str, before: Callable[[], None] = shorten_sources) -> CommandOutcome:
        """Run the job in a place."""
        words = [*JOBS[self.name], "trainer.progress=false", "tracking=none", f"output_dir={place / 'outputs'}", *more]
        return run_command(words, folder=place, environment=self.environment, timeout=120, before=before)

    def stop(self) -> None:
        """Start the job and kill it once it has two checkpoints and rows after them."""

        def die_after_rows() -> None:
            from crux.runs.run_folder import RunFolder

            shorten_sources()
            add_row = RunFolder.add_row

            def add_row_or_die(folder: RunFolder, step: int, row: Mapping[str, float]) -> None:
                add_row(folder, step, row)
                of_job = folder.path.parent / "checkpoints" / "previous.ckpt"  # if the job has several runs
                if of_job.exists() or any(folder.path.rglob("previous.ckpt")):
                    os.kill(os.getpid(), signal.SIGKILL)

            patch.object(RunFolder, "add_row", add_row_or_die).start()

        stopped = self.run(self.place / "stopped", before=die_after_rows)
        assert stopped.code == -signal.SIGKILL, f"{self.name}: {stopped.code} {stopped.err}"

    def files(self) -> list[Path]:
        """Return the files from which the job is resumed, as paths in the outputs folder."""
        outputs = self.place / "stopped" / "outputs"
        paths = [path for path in outputs.rglob("*") if path.is_file() and path.name != ".lock"]
        return sorted(path.relative_to(outputs) for path in paths)


def draw_bytes(path: Path, numbers: random.Random) -> None:
    """Flip a bit, cut, double, empty or overwrite a part of a file."""
    content = bytearray(path.read_bytes())
    position = numbers.randrange(max(1, len(content)))
    match numbers.randrange(6):
        case 0 | 1 if content:
            content[position] ^= 1 << numbers.randrange(8)
        case 2:
            del content[position:]
        case 3:
            content += content[: position or 1]
        case 4:
            content = bytearray(numbers.randbytes(numbers.choice([0, 1, 100, 5000])))
        case _:
            content[position : position + 20] = numbers.randbytes(20)
    path.write_bytes(content)


def replace_by_folder(path: Path, numbers: random.Random) -> None:
    """Put a folder in the place of a file."""
    del numbers
    path.unlink()
    path.mkdir()


def change_checkpoint(path: Path, numbers: random.Random) -> None:
    """Write a checkpoint of another content, half of the time with a correct checksum."""
    import torch

    from crux.training.checkpoints import write_checkpoint

    checkpoint = torch.load(path, weights_only=True)
    signed = numbers.random() < 0.5
    content: Any = _change_content(checkpoint, numbers, allow_objects=not signed)
    if signed and isinstance(content, dict):
        previous = path.with_name("previous.ckpt")
        kept = previous.read_bytes() if previous.exists() else None
        write_checkpoint(path, content)
        previous.unlink(missing_ok=True)
        if kept is not None and numbers.random() < 0.5:
            previous.write_bytes(kept)
    else:
        torch.save(content, path)


def _change_content(checkpoint: dict[str, Any], numbers: random.Random, *, allow_objects: bool) -> Any:
    import torch

    names = [name for name, value in checkpoint["state_dict"].items() if value.is_floating_point() and value.numel()]
    name = numbers.choice(names)
    weight = checkpoint["state_dict"][name]
    match numbers.randrange(10):
        case 0:
            return [checkpoint] if allow_objects else {"a": checkpoint}
        case 1:
            del checkpoint[numbers.choice(list(checkpoint))]
        case 2:
            del checkpoint["state_dict"][name]
        case 3:
            checkpoint["state_dict"][name] = torch.zeros(*weight.shape, 2)
        case 4:
            checkpoint["state_dict"][name] = weight.double()
        case 5:
            checkpoint["state_dict"][name] = torch.full_like(weight, numbers.choice([torch.nan, torch.inf]))
        case 6:
            checkpoint[numbers.choice(list(checkpoint))] = numbers.choice([None, 3, "x", [], {}])
        case 7:
            checkpoint["global_step"] += numbers.choice([-1, 1, 1000, -1000])
        case 8:
            checkpoint["optimizer_states"] = numbers.choice([[], [{}], [None], [{"state": {}, "param_groups": []}]])
        case _:
            checkpoint["extra"] = _Trap() if allow_objects else checkpoint["state_dict"].pop(name)
    return checkpoint


def change_history(path: Path, numbers: random.Random) -> None:
    """Break a line of the history, or end it in the middle of a line."""
    lines = path.read_text().splitlines(keepends=True)
    i = numbers.randrange(len(lines))
    match numbers.randrange(6):
        case 0:
            lines[i] = lines[i][: len(lines[i]) // 2] + "\n"
        case 1:
            lines[-1] = lines[-1][:-3]
        case 2:
            lines[i] = numbers.choice(
                ["\n", "null\n", "[1]\n", "{}\n", '{"step": "x"}\n', "[" * 5000 + "\n", "\x00\x00\n"]
            )
        case 3:
            lines.insert(i, lines[i])
        case 4:
            del lines[i]
        case _:
            lines[i] = json.dumps(json.loads(lines[i]) | {"step": numbers.choice([-1, 0.5, None, 10**30, "1"])}) + "\n"
    path.write_text("".join(lines))


def change_config(path: Path, numbers: random.Random) -> None:
    """Change the configuration: another value, references, tags of Python, deep nesting, other kinds."""
    config = yaml.safe_load(path.read_text())
    bomb = "a: &a [1,1]\n" + "".join(
        f"b{i}: &b{i} [*a,*a]\n" if not i else f"b{i}: &b{i} [*b{i - 1},*b{i - 1}]\n" for i in range(40)
    )
    text = yaml.safe_dump(config, sort_keys=False)
    key = numbers.choice(list(config))
    path.write_text(
        numbers.choice([
            text + bomb, "&a\na: *a\n" + text, "a: &x\n  b: *x\n" + text, "[" * 5000, "- 1\n", "", "3\n", "null\n",
            f"x: !!python/object/apply:os.mkdir ['{TRAP}']\n" + text, yaml.safe_dump(config | {key: 17}),
            yaml.safe_dump({k: v for k, v in config.items() if k != key}), text + "? [1, 2]\n: 3\n", text + "x: 2026-13-45\n",
            text.replace(": ", ":\t", 1), text + "\x00",
        ])
    )  # fmt: skip


def draw_damage(path: Path, numbers: random.Random) -> str:
    """Damage a file in a way that suits it; return what was done."""
    kinds: list[Callable[[Path, random.Random], None]] = [draw_bytes, draw_bytes]
    if numbers.random() < 0.1:
        kinds = [replace_by_folder]
    elif path.suffix == ".ckpt" and path.name == "last.ckpt":
        kinds.append(change_checkpoint)
        kinds.append(change_checkpoint)
    elif path.name == "history.jsonl":
        kinds = [draw_bytes, change_history, change_history]
    elif path.name == "config.yaml" and "programs" not in path.parts:
        kinds = [draw_bytes, change_config, change_config]
    chosen = numbers.choice(kinds)
    chosen(path, numbers)
    return f"{chosen.__name__} of {path.name}"


def try_case(job: StoppedJob, place: Path, numbers: random.Random) -> tuple[str, str | None, str]:
    """Damage a file of a stopped job and resume it; return the outcome, what fell short (or None), and what was done."""
    shutil.copytree(job.place / "stopped", place, symlinks=True)
    outputs = place / "outputs"
    files = job.files()
    weights = [6.0 if path.name in ("last.ckpt", "history.jsonl", "config.yaml") else 1.0 for path in files]
    damaged = outputs / numbers.choices(files, weights)[0]
    done = draw_damage(damaged, numbers)
    run = outputs / "runs" / damaged.relative_to(outputs).parts[1]
    outcome = job.run(place, numbers.choice(["resume=true", f"resume_from='{run}'"]))
    what = f"{job.name}, {done}"
    if Path(TRAP).exists():
        os.rmdir(TRAP)
        return "", "code executed", what
    if outcome.has_traceback:
        return "", f"traceback: {outcome.err.splitlines()[-1][:200]}", what
    if outcome.timed_out:
        return "", "hangs", what
    lines = outcome.err.splitlines()
    if "weights_only" in outcome.err:
        return "", f"torch's advice: {outcome.err[:200]}", what
    if outcome.code == 2:
        if len(lines) != 1 and not any("continuing from" in line or "computing it again" in line for line in lines):
            return "", f"several lines: {outcome.err[:300]}", what
        named = any(part in lines[-1] for part in (damaged.name, str(run), "no unfinished run"))
        return "refused in one line", None if named else f"the file is not named: {lines[-1]}", what
    if outcome.code:
        return "", f"exit code {outcome.code}: {outcome.err[-200:]}", what
    differs = compare_jobs(read_job(outputs), job.whole)
    return "continued, equal to the uninterrupted job", differs and f"silent wrong resume: {differs}", what


def campaign(outcomes: Outcomes, cases: int, seed: int, only: int | None) -> None:
    """Run the cases."""
    import_everything()
    with tempfile.TemporaryDirectory(prefix="damage_") as folder:
        jobs: dict[str, StoppedJob] = {}
        for number in range(cases) if only is None else [only]:
            numbers = random.Random(f"{seed} {number}")
            name = numbers.choice(STOPPED_JOBS)
            if name not in jobs:
                jobs[name] = StoppedJob(name, Path(folder))
            place = Path(folder) / f"case_{number}"
            outcome, problem, what = try_case(jobs[name], place, numbers)
            if problem is None:
                outcomes.held(outcome)
            else:
                outcomes.fell_short(problem.partition(":")[0], case=number, what=f"{what}: {problem}")
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    run_campaign(campaign, name="damaged files of a job", cases=500)
