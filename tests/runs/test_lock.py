"""The lock of a folder: one process at a time, released with it, and file systems without locks."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crux.config.errors import UserError
from crux.runs.lock import lock_folder


def test_a_second_start_is_rejected_with_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path, what="sweep a"),
        pytest.raises(UserError, match=f"is run by process {os.getpid()} on .* since 20"),
        lock_folder(tmp_path, what="sweep a"),
    ):
        raise AssertionError("never here")
    with lock_folder(tmp_path, what="sweep a"):  # released
        pass


def test_a_killed_process_holds_no_lock_while_its_children_still_run(tmp_path: Path) -> None:
    """Ray's processes may run a moment longer than the launching process."""
    code = (
        "import os, pathlib, signal, subprocess, sys\n"
        "from crux.runs.lock import lock_folder\n"
        "with lock_folder(pathlib.Path(sys.argv[1]), what='sweep a'):\n"
        "    child = subprocess.Popen(['sleep', '100'], stdout=subprocess.DEVNULL, close_fds=False)\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True, check=False
    )
    child = int(killed.stdout)
    try:
        os.kill(child, 0)
        assert "process " in (tmp_path / ".lock").read_text()
        with lock_folder(tmp_path, what="sweep a"):
            pass
    finally:
        os.kill(child, 9)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with lock_folder(tmp_path, what="sweep a"):
        assert f"crux: {tmp_path} cannot be locked ({os.strerror(number)}): do not" in capsys.readouterr().err
