"""The environment of every test: shapes checked at run time, few threads, no hub, and no access to the user's outputs and cache."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests.support import run_time_types

# the shapes and types in crux's annotations are checked in tests only, by this hook, which must precede the first import of crux
install_import_hook("crux", f"{run_time_types.__name__}.check_types")

for key in [k for k in os.environ if k.startswith(("MLFLOW_", "HYDRA_", "CRUX_"))]:
    del os.environ[key]
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"),
}

import torch  # noqa: E402 - only now that the environment is set

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

SHORT = (
    "debug=limit",
    "trainer.progress=false",
    "evaluation.tokens=1024",
    "evaluation.val_tokens=512",
    "evaluation.latents=2",
)
"""Overrides with which any job takes seconds."""

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # raised by MLflow's own use of SQLAlchemy
    config.addinivalue_line("filterwarnings", "ignore:.*``noload`` loader strategy.*:DeprecationWarning")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the token cache that all tests and all workers of xdist share, so that the packaged text is tokenised once."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture(scope="session", autouse=True)
def _set_cache_and_outputs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep every test away from the cache and the outputs of the user."""
    os.environ |= {"CRUX_CACHE": str(cache), "CRUX_OUTPUTS": str(tmp_path_factory.mktemp("outputs"))}


@contextmanager
def _restore_process():
    """Restore sys.argv, the environment and the handler of SIGTERM at the end of the block, which `main` and a test change."""
    argv, environment, handler = sys.argv, dict(os.environ), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def run_crux() -> Callable[..., int]:
    """Return a function that runs a command line in this process and returns its exit code.

    Libraries stay loaded, so that a job takes seconds.
    """

    def run_command_line(*arguments: str) -> int:
        from crux.cli import main

        with _restore_process():
            sys.argv = ["main.py", *arguments]
            try:
                main()
            except SystemExit as stop:
                return int(stop.code or 0)
            return 0

    return run_command_line


@pytest.fixture
def error_message(
    run_crux: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., str]:
    """Return a function that runs a command line with a mistake in it and returns the error message.

    It checks that the exit code is 2, that the message is one line, and that no run was started.
    """

    def read_message(*arguments: str) -> str:
        assert run_crux(*arguments, f"output_dir={tmp_path}") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "runs").exists()
        return line

    return read_message


@pytest.fixture(scope="session")
def short_job() -> tuple[str, ...]:
    """Return the overrides with which any job takes seconds."""
    return SHORT


@pytest.fixture(scope="session")
def command() -> list[str]:
    """Return the beginning of a command line for a subprocess: Python and crux's main.py."""
    return [sys.executable, str(ROOT / "src" / "main.py")]
