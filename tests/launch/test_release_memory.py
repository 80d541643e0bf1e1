"""Memory between the jobs of a sweep that run in one process; tests/campaigns/soak.py measures whole sweeps."""

import platform
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from crux.launch.release_memory import release_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_free_memory_and_garbage_are_returned() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    blocks: list[object] = [bytearray(b"x" * 2000) for _ in range(100_000)]
    last = blocks[-1]  # stays in use above the others, so that the allocator does not return them by itself
    cycle: list[object] = [blocks]
    cycle.append(cycle)  # garbage that only a collection frees
    del blocks, cycle
    assert process.memory_info().rss - before > 150e6
    release_memory()
    assert process.memory_info().rss - before < 50e6
    assert last


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
