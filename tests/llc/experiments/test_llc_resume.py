"""Experiments that are killed with SIGKILL and resumed equal uninterrupted ones bit for bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[3]

KILLED_SCRIPT = """
import os, signal, sys
sys.path.insert(0, "src")
import crux.llc.chains as chains, crux.llc.experiments.sampling as sampling
from crux.cli import main

sampling.CHECKPOINT_SECONDS, after, save = 0.0, int(sys.argv.pop(1)), chains.Chains.save
saves = 0

def save_and_die(self, path, *, identity):
    global saves
    save(self, path, identity=identity)
    saves += 1
    if saves == after:
        os.kill(os.getpid(), signal.SIGKILL)

chains.Chains.save = save_and_die
main()
"""
"""A script that runs the command line with a checkpoint after every step of the chains, and kills itself after `after` checkpoints."""

SHORT = (
    "tracking=none",
    "trainer.progress=false",
    "llc.chains=2",
    "llc.burn_in=6",
    "llc.draws=8",
    "llc.nbetas=[1e4,1e5]",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "after"),
    [
        (["experiment=llc/kgon", "llc.corners=[5]"], 9),
        (
            ["experiment=llc/toy_training", "trainer.max_steps=40", "trainer.log_every=10", "toy.snapshots=4", "toy.seeds=1",
             "toy.held_out=1024", "llc.checkpoints=2", "llc.samples=16"],
            20,
        ),
        (
            ["experiment=llc/sae_training", "trainer.max_steps=40", "trainer.log_every=10", "trainer.checkpoint_every=20",
             "llc.checkpoints=3", "llc.samples=16"],
            3,
        ),
    ],
    ids=["kgon", "toy_training", "sae_training"],
)  # fmt: skip
def test_killed_run_resumes_exactly(given: list[str], after: int, run_crux: Callable[..., int], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_crux(*given, *SHORT, f"output_dir={whole}") == 0
    command = [sys.executable, "-c", KILLED_SCRIPT, str(after), *given, *SHORT, f"output_dir={killed}"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    (folder,) = (killed / "runs").iterdir()
    assert list((folder / "pieces").glob("*.safetensors"))
    assert run_crux(*given, *SHORT, f"output_dir={killed}", "resume=true") == 0
    (expected,) = (whole / "runs").iterdir()
    assert list((killed / "runs").iterdir()) == [folder]
    assert not (folder / "pieces").exists()
    for name in ("metrics.json", "history.jsonl", "report.md"):
        assert (folder / name).read_text() == (expected / name).read_text()
    a, b = (load_file(run / "arrays.safetensors") for run in (folder, expected))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name].nan_to_num(), b[name].nan_to_num()) for name in a)
