"""A run that was killed and goes on ends where an uninterrupted one ends, bit for bit."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import LOSSES, RECIPE, Loss, gpt2, module_for, run_fit, source_for, token_batches
from torch import Tensor

from crux.tracking.run_folder import RunFolder
from crux.training.fit import checkpoint_step


class KilledError(Exception):
    """Stands for SIGKILL: nothing is tidied up after it."""


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Tensors and numbers of a checkpoint, by their place in it."""
    match node:
        case Mapping():
            return {k: v for key, value in node.items() for k, v in leaves(value, f"{path}/{key}").items()}
        case list() | tuple():
            return {k: v for i, value in enumerate(node) for k, v in leaves(value, f"{path}/{i}").items()}
        case _:
            return {path: node}


def assert_identical(a: Path, b: Path) -> None:
    left, right = (leaves(torch.load(p, weights_only=True)) for p in (a, b))
    # Lightning's own: file names, and its count of batches since the start of this process
    ours = {k for k in left if not k.startswith(("/callbacks", "/loops"))}
    assert ours == {k for k in right if not k.startswith(("/callbacks", "/loops"))}
    tensors = 0
    for key in ours:
        if isinstance(left[key], Tensor):
            tensors += 1
            assert torch.equal(left[key], right[key]), key
        else:
            assert left[key] == right[key], key
    assert any("exp_avg_sq" in k for k in ours)
    assert {"/state_dict/last_fired", "/state_dict/tokens_seen", "/state_dict/sae.W_dec"} <= ours
    assert tensors > 15


def short_run(
    loss: Loss, folder: RunFolder, *, accumulate: int, log_every: int, killed_after: int | None, resume: bool
) -> list[Tensor]:
    """Six steps from fresh objects, as a new process has them; a checkpoint every three. Returns what it trained on."""
    subject = gpt2()
    module = module_for(loss, subject, recipe=RECIPE._replace(log_every=log_every))
    seen: list[Tensor] = []

    def note(batch: Tensor, batch_idx: int) -> None:
        if killed_after is not None and len(seen) == killed_after * accumulate:
            raise KilledError
        seen.append(batch.clone())

    module.on_train_batch_start = note
    folder.forget_after(checkpoint_step(folder.checkpoint) if resume else 0)
    with suppress(KilledError):
        run_fit(
            module,
            source_for(loss, subject, token_batches(subject, n=6 * accumulate)),
            checkpoints=folder.checkpoint.parent,
            sinks=[folder.add_row],
            accumulate=accumulate,
            checkpoint_every=3,
            resume=folder.checkpoint if resume else None,
        )
    return seen


@pytest.mark.parametrize(("accumulate", "log_every"), [(1, 1), (2, 2)])  # rows every 2: one spans the checkpoint at 3
@pytest.mark.parametrize("loss", LOSSES)
def test_going_on_equals_never_having_stopped(loss: Loss, accumulate: int, log_every: int, tmp_path: Path) -> None:
    whole, broken = (RunFolder.create(tmp_path / name, {}) for name in ("whole", "broken"))
    options = {"accumulate": accumulate, "log_every": log_every}
    batches = short_run(loss, whole, **options, killed_after=None, resume=False)
    assert len(batches) == 6 * accumulate
    assert len(short_run(loss, broken, **options, killed_after=4, resume=False)) == 4 * accumulate
    assert checkpoint_step(broken.checkpoint) == 3
    assert broken.history()[-1]["step"] == 4, "it should have gone beyond its checkpoint"
    again = short_run(loss, broken, **options, killed_after=None, resume=True)
    for a, b in zip(batches[3 * accumulate :], again, strict=True):
        assert torch.equal(a, b), "it should read on where the checkpoint was written"
    assert checkpoint_step(broken.checkpoint) == 6
    assert_identical(whole.checkpoint, broken.checkpoint)
    assert [row["step"] for row in broken.history()] == list(range(log_every, 7, log_every))
    assert broken.history() == whole.history()


def test_a_checkpoint_holds_no_subject_and_no_pickled_object(tmp_path: Path) -> None:
    subject = gpt2()
    module = module_for("e2e_ds", subject)
    run_fit(module, token_batches(subject, n=6), checkpoints=tmp_path, checkpoint_every=3)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)  # refuses objects
    assert all(k.startswith(("sae.", "last_fired", "tokens_seen", "first_bad")) for k in state["state_dict"])
    assert sum(v.numel() for v in leaves(state).values() if isinstance(v, Tensor)) < 4 * sum(
        p.numel() for p in module.sae.parameters()
    )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"cut"])
def test_a_broken_checkpoint_is_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    if content == b"cut":
        subject = gpt2()
        run_fit(module_for("e2e", subject), token_batches(subject, n=6), checkpoints=tmp_path, checkpoint_every=3)
        content = path.read_bytes()[:-5000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no whole checkpoint") as caught:
        checkpoint_step(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_without_a_checkpoint_a_run_starts_at_zero(tmp_path: Path) -> None:
    assert checkpoint_step(tmp_path / "last.ckpt") == 0
