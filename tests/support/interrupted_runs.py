"""Runs that are killed and resumed in fresh objects; they must equal an uninterrupted run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crux.runs.run_folder import RunFolder
from crux.sae.training.sae_module import SAEModule
from crux.training.checkpoints import checkpoint_step
from crux.training.devices import CPU, Hardware
from tests.support.small_runs import run_fit

Job = Callable[[], tuple[SAEModule, Sequence[Any]]]
"""Builds a fresh module and its batches, as a new process would."""
Batch = dict[str, Tensor]
"""The tensors of a batch, by their path in it."""
CHECKPOINT_EVERY = 3


class KilledError(Exception):
    """An error that stands for SIGKILL: nothing is cleaned up after it."""


def flatten_leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Return the tensors and numbers of a checkpoint or a batch, by their path in it."""
    match node:
        case Mapping():
            return {k: v for key, value in node.items() for k, v in flatten_leaves(value, f"{path}/{key}").items()}
        case list() | tuple():
            return {k: v for i, value in enumerate(node) for k, v in flatten_leaves(value, f"{path}/{i}").items()}
        case _:
            return {path: node}


def assert_identical(a: Path, b: Path) -> None:
    """Check that two checkpoints are equal, except for Lightning's file names and its count of batches in this process."""
    left, right = (flatten_leaves(torch.load(p, weights_only=True)) for p in (a, b))
    compared = {k for k in left if not k.startswith(("/callbacks", "/loops"))}
    assert compared == {k for k in right if not k.startswith(("/callbacks", "/loops"))}
    n_tensors = 0
    for key in compared:
        if isinstance(left[key], Tensor):
            n_tensors += 1
            assert torch.equal(left[key], right[key]), key
        else:
            assert left[key] == right[key], key
    # control: weights, optimiser, tally, steering and generator are all in the checkpoint, and therefore compared
    assert any("exp_avg_sq" in k for k in compared)
    tally = {f"/state_dict/tallies.0.{name}" for name in ("last_fired", "tokens_seen")}
    sparsity = {f"/state_dict/sparsity.{name}" for name in ("weight", "integral", "log_l0", "log_mean")}
    assert {"/state_dict/saes.0.W_dec", "/generator"} | tally | sparsity <= compared
    assert n_tensors > 15


def train(
    job: Job, folder: RunFolder, *, accumulate: int, killed_after: int | None, resume: bool, hardware: Hardware = CPU
) -> list[Batch]:
    """Train with a checkpoint every `CHECKPOINT_EVERY` steps, and return the batches that the module received.

    Args:
        killed_after: the step after which the training is killed; None: it is not killed.
    """
    module, batches = job()
    batches_seen: list[Batch] = []
    start_batch = module.on_train_batch_start

    def record_batch(batch: Any, batch_idx: int) -> None:
        if killed_after is not None and len(batches_seen) == killed_after * accumulate:
            raise KilledError
        batches_seen.append({path: x.clone() for path, x in flatten_leaves(batch).items()})
        start_batch(batch, batch_idx)

    module.on_train_batch_start = record_batch
    folder.drop_rows_after(checkpoint_step(folder.checkpoint) if resume else 0)
    with suppress(KilledError):
        run_fit(
            module,
            batches,
            checkpoints=folder.checkpoint.parent,
            sinks=[folder.add_row],
            accumulate=accumulate,
            checkpoint_every=CHECKPOINT_EVERY,
            resume=folder.checkpoint if resume else None,
            hardware=hardware,
        )
    return batches_seen


def assert_resumed_equals_uninterrupted(
    job: Job, tmp_path: Path, *, steps: int, killed_after: int, accumulate: int = 1, hardware: Hardware = CPU
) -> RunFolder:
    """Check that a run that is killed between two checkpoints and resumed equals an uninterrupted one, bit for bit.

    Returns the folder of the uninterrupted run.
    """
    whole, broken = (RunFolder.create(tmp_path / name, {}) for name in ("whole", "broken"))
    last_checkpoint = killed_after // CHECKPOINT_EVERY * CHECKPOINT_EVERY
    assert 0 < last_checkpoint < killed_after < steps, "the run must be killed between two checkpoints"
    batches = train(job, whole, accumulate=accumulate, killed_after=None, resume=False, hardware=hardware)
    assert len(batches) == steps * accumulate
    killed = train(job, broken, accumulate=accumulate, killed_after=killed_after, resume=False, hardware=hardware)
    assert len(killed) == killed_after * accumulate
    assert checkpoint_step(broken.checkpoint) == last_checkpoint
    assert broken.read_history()[-1]["step"] == killed_after, "the killed run should be beyond its checkpoint"
    resumed = train(job, broken, accumulate=accumulate, killed_after=None, resume=True, hardware=hardware)
    for a, b in zip(batches[last_checkpoint * accumulate :], resumed, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(x, b[path]) for path, x in a.items()), (
            "a resumed run should continue with the batch after its checkpoint"
        )
    assert (
        checkpoint_step(broken.checkpoint) == checkpoint_step(whole.checkpoint) >= steps - 2
    )  # the last multiple of CHECKPOINT_EVERY
    assert_identical(whole.checkpoint, broken.checkpoint)
    assert broken.read_history() == whole.read_history()
    return whole
