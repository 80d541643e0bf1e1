"""Memory between the jobs of a sweep that run in one process; tests/campaigns/soak.py measures whole sweeps."""

import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BLOCKS_LEFT_BY_A_JOB = """
import psutil
from crux.launch.release_memory import release_memory

process = psutil.Process()
before = process.memory_info().rss
blocks = [bytearray(b"x" * 2000) for _ in range(100_000)]
last = blocks[-1]  # stays in use above the others, so that the allocator does not return them by itself
cycle = [blocks]
cycle.append(cycle)  # garbage that only a collection frees
del blocks, cycle
print(process.memory_info().rss - before)
release_memory()
print(process.memory_info().rss - before)
"""
"""A process of its own: where an earlier test has left gaps, the blocks need no new memory."""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_free_memory_and_garbage_are_returned() -> None:
    process = subprocess.run(
        [sys.executable, "-c", BLOCKS_LEFT_BY_A_JOB], capture_output=True, text=True, check=True, timeout=120
    )
    held, after = map(int, process.stdout.split())
    assert held > 150e6
    assert after < 50e6


def test_every_job_of_a_sweep_releases_its_memory(
    run_crux: Callable[..., int], short_job: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that fails releases it too."""
    from crux import cli

    calls: list[str] = []
    start = cli.start

    def start_or_fail(*arguments: object, folder: Path, **options: object) -> None:
        calls.append("start")
        if len(calls) == 1:
            raise RuntimeError("a bug")
        start(*arguments, folder=folder, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(cli, "start", start_or_fail)
    monkeypatch.setattr(cli, "release_memory", lambda: calls.append("release"))
    words = ("-m", *short_job, "loss=local", "layer=2,4", "tracking=none", f"output_dir={tmp_path}")
    assert run_crux(*words) == 1
    assert calls == ["start", "release"] * 2
