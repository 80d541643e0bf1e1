"""A killed and resumed run ends like an uninterrupted one, bit for bit."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.training.sae_module import SAEModule
from crux.training.checkpoints import checkpoint_step
from tests.support.interrupted_runs import assert_resumed_equals_uninterrupted, flatten_leaves
from tests.support.small_runs import (
    LOSSES,
    Loss,
    draw_token_batches,
    make_gpt2,
    make_module,
    make_training_batches,
    run_fit,
)


@pytest.mark.parametrize(("accumulate", "log_every"), [(1, 1), (2, 2)])  # rows every 2: one spans the checkpoint at 3
@pytest.mark.parametrize("loss", LOSSES)
def test_a_resumed_run_equals_an_uninterrupted_one(loss: Loss, accumulate: int, log_every: int, tmp_path: Path) -> None:
    """Train six steps; the token batches of kl_finetune begin with the fourth, the first one after the checkpoint."""

    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = make_gpt2()
        module = make_module(loss, subject, log_every=log_every)
        return module, make_training_batches(loss, subject, draw_token_batches(subject, n=6 * accumulate))

    whole = assert_resumed_equals_uninterrupted(job, tmp_path, steps=6, killed_after=4, accumulate=accumulate)
    assert [row["step"] for row in whole.read_history()] == list(range(log_every, 7, log_every))
    drawn = torch.load(whole.checkpoint, weights_only=True)["generator"]
    fresh = torch.Generator().manual_seed(0).get_state()
    assert torch.equal(drawn, fresh) == (loss != "fisher"), (
        "the generator of the labels should be in the checkpoint too"
    )


def test_a_finetuned_sae_resumes_within_its_token_batches(tmp_path: Path) -> None:
    def job() -> tuple[SAEModule, Sequence[Any]]:
        subject = make_gpt2()
        module = make_module("kl_finetune", subject, max_steps=10)
        return module, make_training_batches("kl_finetune", subject, draw_token_batches(subject, n=10))

    whole = assert_resumed_equals_uninterrupted(job, tmp_path, steps=10, killed_after=8)
    assert ["train/kl" in row for row in whole.read_history()] == 5 * [False] + 5 * [True]


def test_a_checkpoint_has_no_subject_and_no_pickled_object(tmp_path: Path) -> None:
    subject = make_gpt2()
    module = make_module("e2e_ds", subject)
    run_fit(module, draw_token_batches(subject, n=6), checkpoints=tmp_path, checkpoint_every=3)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)  # refuses objects
    assert all(k.startswith(("saes.0.", "tallies.0.", "sparsity.", "watch.")) for k in state["state_dict"])
    generator = state.pop("generator").numel()
    assert generator < 10_000
    assert sum(v.numel() for v in flatten_leaves(state).values() if isinstance(v, Tensor)) < 4 * sum(
        p.numel() for p in module.saes.parameters()
    )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"cut"])
def test_a_broken_checkpoint_gives_one_clear_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    if content == b"cut":
        subject = make_gpt2()
        run_fit(make_module("e2e", subject), draw_token_batches(subject, n=6), checkpoints=tmp_path, checkpoint_every=3)
        content = path.read_bytes()[:-5000]
        (tmp_path / "previous.ckpt").unlink()
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a complete checkpoint") as caught:
        checkpoint_step(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_without_a_checkpoint_a_run_starts_at_zero(tmp_path: Path) -> None:
    assert checkpoint_step(tmp_path / "last.ckpt") == 0
