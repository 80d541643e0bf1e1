"""A package outside of crux adds an architecture, a loss, a subject and a callback, and trains with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).with_name("plugin")
MAIN = [sys.executable, str(Path(__file__).parents[1] / "src" / "main.py")]
PLUGIN_OPTIONS = ["sae=soft_threshold", "loss=absolute", "model=no_last_mlp"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Install the plug-in, and return the environment variables with which Python finds it."""
    target = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(target), str(PLUGIN)], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def run_main(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run crux's command line in a process of its own, because plug-ins are looked for when it starts."""
    return subprocess.run([*MAIN, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_a_run_uses_the_architecture_loss_subject_and_callback_of_a_plug_in(
    environment: dict[str, str], tmp_path: Path, short_job: tuple[str, ...]
) -> None:
    counted, outputs = tmp_path / "steps", tmp_path / "outputs"
    callback = ["callbacks=counter", f"callbacks.counter.path={counted}"]
    done = run_main(
        environment, *short_job, *PLUGIN_OPTIONS, *callback, "sae.margin=0.2", "tracking=none", f"output_dir={outputs}"
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (outputs / "runs").iterdir()
    assert json.loads((folder / "metrics.json").read_text())["final/l0"] > 0
    row = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])
    assert row["train/loss"] == pytest.approx(2 * row["train/absolute"] + row["train/sparsity"] * 1.0, rel=0.5)
    assert counted.read_text() == "4"
    assert (folder / "DONE").exists()


def test_help_explains_the_options_and_keys_of_a_plug_in(environment: dict[str, str]) -> None:
    page = " ".join(run_main(environment, "--help").stdout.split())
    for option in (
        "soft_threshold One threshold",
        "absolute Mean absolute error",
        "no_last_mlp The packaged model",
        "counter Writes",
    ):
        assert option in page
    one_option = " ".join(run_main(environment, "--help", "sae=soft_threshold").stdout.split())
    assert "sae.margin=0.1 What is subtracted from each pre-activation. [number, more than 0]" in one_option
    assert "sae.margin=0.1" in run_main(environment, "--help", "sae.margin").stdout


def test_the_options_of_a_plug_in_are_checked_like_those_of_crux(environment: dict[str, str], tmp_path: Path) -> None:
    for line, message in {
        "sae=soft_threshold sae.margin=-1": "sae.margin=-1: must be more than 0",
        "sae=soft_threshold sae.k=3": "sae.k: sae=soft_threshold has no such key",
        "loss=absolut": "did you mean absolute?",
    }.items():
        ended = run_main(environment, *line.split(), f"output_dir={tmp_path}")
        assert ended.returncode == 2
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1
