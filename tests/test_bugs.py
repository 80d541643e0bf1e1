"""A programming error in crux shows its traceback, on the screen and in a sweep's FAILED file."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from crux.sae import build

BUGS: dict[str, Callable[[], object]] = {
    "zip() argument 2 is longer than argument 1": lambda: list(zip([1], [1, 2], strict=True)),
    "invalid literal for int() with base 10: 'six'": lambda: int("six"),
}
"""Code with a bug, by the message of the ValueError that it raises. Not every ValueError is a UserError."""

PROGRAM = """
import sys
from crux.cli import main
from crux.sae import build

def planted(*arguments, **named):
    {error}

build.build_sae = planted
sys.argv[1:] = {arguments!r}
main()
"""


@pytest.mark.parametrize("error", ["list(zip([1], [1, 2], strict=True))", 'int("six")'])
def test_a_single_run_ends_with_a_traceback_and_exit_code_1(
    error: str, tmp_path: Path, short_job: tuple[str, ...]
) -> None:
    program = PROGRAM.format(error=error, arguments=[*short_job, "tracking=none", f"output_dir={tmp_path}"])
    src = str(Path(__file__).parents[1] / "src")
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {src!r})\n{program}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr
    assert "ValueError" in ended.stderr
    assert "planted" in ended.stderr


@pytest.mark.parametrize("message", BUGS)
def test_the_failed_file_of_a_sweeps_job_holds_the_traceback(
    message: str,
    tmp_path: Path,
    short_job: tuple[str, ...],
    run_crux: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def planted(*arguments: object, **named: object) -> None:
        BUGS[message]()

    monkeypatch.setattr(build, "build_sae", planted)
    assert run_crux(*short_job, "-m", "seed=0,1", "tracking=none", "sweep_name=planted", f"output_dir={tmp_path}") == 1
    failed = sorted((tmp_path / "sweeps" / "planted").glob("*/FAILED"))
    assert len(failed) == 2
    for path in failed:
        first, _, rest = path.read_text("utf-8").partition("\n")
        assert first == f"ValueError: {message}"
        assert "Traceback (most recent call last)" in rest
        assert "planted" in rest
