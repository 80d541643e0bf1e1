"""Standard output and standard error that never fail, in real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import crux

PROGRAM = """
import os, sys
from crux.config.streams import protect_streams
protect_streams()
protect_streams()
with open(sys.argv[1], "w") as f:
    assert f.fileno() > 2
    print("e2e λ=1.5 ‖x̂‖ 中 →", flush=True)
    print("λ", file=sys.stderr)
    for line in range(100_000):
        print("line", line)
    sys.stdout.flush()
    os.write(1, b"a library in C")
    f.write("safe")
"""


def run(tmp_path: Path, redirection: str, **environment: str) -> tuple[int, bytes, bytes]:
    """Run the program in a shell with a redirection; return exit code, standard output and standard error."""
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    line = f'"{sys.executable}" "$PROGRAM" "$FILE" {redirection}'
    variables = {
        "PROGRAM": str(tmp_path / "program.py"),
        "FILE": str(tmp_path / "file"),
        "PYTHONPATH": str(Path(crux.__file__).parents[1]),
    }
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True, check=False, timeout=120, env=os.environ | variables | environment,
    )  # fmt: skip
    assert (tmp_path / "file").read_text() == "safe"
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("environment", "first", "err"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"e2e lambda=1.5 ||x^|| \\u4e2d ->", b"lambda"),
        ({"PYTHONIOENCODING": "latin-1:strict"}, b"e2e lambda=1.5 ||x^|| \\u4e2d ->", b"lambda"),
        ({"PYTHONIOENCODING": "cp1252"}, b"e2e lambda=1.5 ||x^|| \\u4e2d ->", b"lambda"),
        (
            {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            b"e2e lambda=1.5 ||x^|| \\u4e2d ->",
            b"lambda",
        ),
        ({"PYTHONIOENCODING": "utf-8"}, "e2e λ=1.5 ‖x̂‖ 中 →".encode(), "λ".encode()),
    ],
)
def test_encodings(environment: dict[str, str], first: bytes, err: bytes, tmp_path: Path) -> None:
    code, out, errors = run(tmp_path, "", **environment)
    assert (code, errors) == (0, err + b"\n")
    lines = out.splitlines()
    assert lines[0] == first
    assert len(lines) == 100_002


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "redirection",
    ["| head -1", "| true", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "> /dev/full 2>&1", "2> /dev/full | head -1"],
)
def test_outputs_that_fail(redirection: str, unbuffered: str, tmp_path: Path) -> None:
    """Once a write has failed, the descriptor is /dev/null, which accepts what libraries in C write."""
    code, out, errors = run(tmp_path, redirection, PYTHONUNBUFFERED=unbuffered, PYTHONIOENCODING="utf-8")
    assert code == 0, errors
    if "head" in redirection:
        assert out == "e2e λ=1.5 ‖x̂‖ 中 →\n".encode()
    if "2>" not in redirection:
        assert errors == "λ\n".encode()


def test_a_reader_that_does_not_block(tmp_path: Path) -> None:
    """A terminal that another program has set to not block accepts only a part of a write, or nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = os.environ | {"PYTHONPATH": str(Path(crux.__file__).parents[1]), "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "file")], stdout=writer, stderr=subprocess.DEVNULL, env=environment
    )  # fmt: skip
    os.close(writer)
    with open(reader, "rb") as out:
        written = out.read()
    assert process.wait(timeout=60) == 0
    assert written.count(b"\n") == 100_001


def test_streams_of_a_test_or_a_notebook_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    from crux.config.streams import protect_streams

    before = sys.stdout, sys.stderr
    protect_streams()
    assert (sys.stdout, sys.stderr) == before
