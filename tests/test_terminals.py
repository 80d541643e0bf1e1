"""Whole commands whose output fails: the exit code, the run folder and the sweep's state are as always."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

MAIN = ("loss=local", "layer=4", "trainer.max_steps=2", "evaluation.latents=0")
ASCII = {"PYTHONIOENCODING": "ascii"}


def run(words: list[str], redirection: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command line in a shell with a redirection."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{shlex.join(words)} {redirection}"],
        capture_output=True, text=True, check=False, timeout=300, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "redirection", "code"),
    [
        (["--help"], "| head -1", 0),
        (["--help"], "> /dev/full", 0),
        (["--version"], ">&-", 0),
        (["layer=99"], "2>&-", 2),
        (["layer=99"], "2> /dev/full", 2),
    ],
)
def test_answers_without_a_run(words: list[str], redirection: str, code: int, command: list[str]) -> None:
    ended = run([*command, *words], redirection, ASCII)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.parametrize(
    ("redirection", "environment"),
    [
        ("| head -1", {"COLUMNS": "0"}),
        ("<&- >&- 2>&-", {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        pytest.param("> /dev/full 2> /dev/full", ASCII | {"COLUMNS": "20"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_done_whatever_happens_to_its_output(
    redirection: str, environment: dict[str, str], command: list[str], short_job: tuple[str, ...], tmp_path: Path
) -> None:
    words = [*command, *short_job, *MAIN, "trainer.progress=true", "tracking=none", f"output_dir={tmp_path}"]
    ended = run(words, redirection, environment)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "DONE").exists()


def test_a_sweep_without_utf_8(command: list[str], short_job: tuple[str, ...], tmp_path: Path) -> None:
    """Jobs with DONE once had FAILED too, because λ in their tables could not be printed."""
    words = [
        *command,
        "-m",
        *short_job,
        *MAIN,
        "tracking=none",
        "seed=0,1",
        f"output_dir={tmp_path}",
        "sweep_name=ascii",
    ]
    ended = run(words, "", ASCII)
    assert ended.returncode == 0, ended.stderr
    jobs = [path for path in (tmp_path / "sweeps" / "ascii").iterdir() if (path / "config.yaml").exists()]
    assert len(jobs) == 2
    assert all((job / "DONE").exists() and not (job / "FAILED").exists() for job in jobs)
    assert "sparsity lambda" in ended.stdout
    assert "+---" in ended.stdout
