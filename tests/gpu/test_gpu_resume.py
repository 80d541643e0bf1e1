"""Runs on CUDA: two equal runs and a resumed run have the same numbers bit for bit; a killed command is resumed; memory does not grow."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from crux.runs.run_folder import RunFolder
from crux.sae.architectures.site import Site
from crux.sae.training.sae_module import SAEModule
from crux.subjects.load import load_subject
from crux.training.devices import Hardware
from tests.support.cuda import BFLOAT16, DEVICE, FLOAT32, subject_dtype
from tests.support.interrupted_runs import Job, assert_identical, assert_resumed_equals_uninterrupted, train
from tests.support.small_runs import (
    HOOK,
    LOSSES,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_sae,
    make_training_batches,
    run_fit,
)

pytestmark = pytest.mark.gpu

HARDWARE = pytest.mark.parametrize("hardware", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])


@HARDWARE
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    loss: Loss, accumulate: int, hardware: Hardware, tmp_path: Path
) -> None:
    """With rows every two steps, one spans the checkpoint after the third step."""

    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = make_gpt2().to(device=DEVICE)
        module = make_module(loss, subject, log_every=accumulate)
        return module, make_training_batches(loss, subject, draw_token_batches(subject, n=6 * accumulate))

    assert_resumed_equals_uninterrupted(
        job, tmp_path, steps=6, killed_after=4, accumulate=accumulate, hardware=hardware
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_many_runs_are_resumed_with_a_row_that_spans_the_checkpoint(loss: Loss, tmp_path: Path) -> None:
    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = make_gpt2().to(device=DEVICE)
        sites = [Site(HOOK, HOOK, make_sae(subject, seed=seed)) for seed in range(3)]
        module = make_module(loss, subject, sites=sites, sparsity=[0.1, 0.5, 3.0], runs=("a", "b", "c"), log_every=2)
        return module, make_training_batches(loss, subject, draw_token_batches(subject, n=6), group=2)

    assert_resumed_equals_uninterrupted(job, tmp_path, steps=6, killed_after=4, hardware=FLOAT32)


def job_on_the_packaged_model(loss: Loss, hardware: Hardware) -> Job:
    """Return a job with attention over a whole context, whose backward pass may add in any order."""

    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = load_subject("tiny", process_weights=False, device=DEVICE, dtype=subject_dtype(hardware))
        hook = "blocks.2.hook_resid_pre"
        module = make_module(loss, subject, sae=make_sae(subject, n_latents=2048), hook=hook)
        return module, draw_token_batches(subject, n=6, batch=4, pos=256)

    return job


@HARDWARE
def test_two_equal_runs_have_equal_numbers(hardware: Hardware, tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path / name, {}) for name in ("a", "b")]
    job = job_on_the_packaged_model("e2e_ds", hardware)
    for folder in folders:
        train(job, folder, accumulate=1, killed_after=None, resume=False, hardware=hardware)
    assert folders[0].read_history() == folders[1].read_history()
    assert_identical(*(folder.checkpoint for folder in folders))


@HARDWARE
def test_the_packaged_model_is_resumed_bit_for_bit(hardware: Hardware, tmp_path: Path) -> None:
    job = job_on_the_packaged_model("e2e_ds", hardware)
    assert_resumed_equals_uninterrupted(job, tmp_path, steps=6, killed_after=4, hardware=hardware)


def test_a_killed_command_is_resumed_and_equals_an_uninterrupted_one(command: list[str], tmp_path: Path) -> None:
    def arguments(name: str) -> list[str]:
        return [
            *command, "loss=e2e", "layer=6", "trainer.max_steps=400", "trainer.checkpoint_every=20", "trainer.batch=2",
            "trainer.val_every=0", "evaluation.tokens=2048", "evaluation.latents=0", "trainer.progress=false",
            "tracking=none", f"output_dir={tmp_path / name}",
        ]  # fmt: skip

    subprocess.run(arguments("whole"), check=True)
    process = subprocess.Popen(arguments("killed"))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed" / "runs").glob("*/checkpoints/last.ckpt")):
        assert process.poll() is None, "the command ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = (tmp_path / "killed" / "runs").iterdir()
    assert not (killed / "DONE").exists(), "the command was too fast to be killed"
    subprocess.run([*arguments("killed"), "resume=true"], check=True)
    (whole,) = (tmp_path / "whole" / "runs").iterdir()
    a, b = (load_file(folder / "sae" / "sae_weights.safetensors") for folder in (whole, killed))
    assert all(torch.equal(a[name], b[name]) for name in a)


class WatchMemory(L.Callback):
    """Records the allocated bytes after some steps."""

    def __init__(self) -> None:
        self.allocated: dict[int, int] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in (20, 220):
            torch.cuda.synchronize()
            self.allocated[batch_idx] = torch.cuda.memory_allocated()


@pytest.mark.parametrize("loss", LOSSES)
def test_memory_does_not_grow_in_200_steps(loss: Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = make_gpt2().to(device=DEVICE)
    module = make_module(loss, subject, max_steps=222, log_every=50)
    watch, rows = WatchMemory(), SAEModule.configure_callbacks(module)
    monkeypatch.setattr(module, "configure_callbacks", lambda: [*rows, watch])
    # the 20th and the 220th batch are in the same place of their groups and of their rows
    source = make_training_batches(loss, subject, draw_token_batches(subject, n=222), group=4)
    run_fit(module, source, checkpoints=tmp_path, hardware=BFLOAT16, checkpoint_every=20)
    assert watch.allocated.keys() == {20, 220}
    assert watch.allocated[220] - watch.allocated[20] <= 64 * 1024  # rows that hold different numbers of small tensors
