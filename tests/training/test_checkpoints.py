"""Checkpoints: complete or not there, every changed byte is found, and the one before is used instead of a damaged one."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from torch import nn

from crux.config.errors import UserError
from crux.training.checkpoints import (
    CheckContinuation,
    CheckedCheckpointIO,
    DamagedCheckpointError,
    checkpoint_step,
    read_checkpoint,
    remove_checkpoints,
    write_checkpoint,
)


def make_checkpoint(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "global_step": step, "state_dict": {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "optimizer_states": [],
        "lr_schedulers": [], "loops": {}, "callbacks": {},
    } | changes  # fmt: skip


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """Return the path of the newest of two checkpoints, after steps 10 and 20."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    for step in (10, 20):
        write_checkpoint(path, make_checkpoint(step))
    return path


def test_the_newest_two_checkpoints_are_kept_and_torch_reads_them(last: Path) -> None:
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert checkpoint_step(last) == 20
    assert torch.load(last, weights_only=True)["global_step"] == 20
    write_checkpoint(last, make_checkpoint(30))
    assert [read_checkpoint(last.with_name(name))["global_step"] for name in ("last.ckpt", "previous.ckpt")] == [30, 20]
    remove_checkpoints(last)
    assert not last.parent.exists()


def test_every_changed_byte_is_found(last: Path) -> None:
    content = bytearray(last.read_bytes())
    assert len(content) > 1000
    for position in range(len(content)):
        content[position] ^= 1 << position % 8
        last.write_bytes(content)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(last)
        content[position] ^= 1 << position % 8


@pytest.mark.parametrize("kept", [0, 1, 60, 500, -1])
def test_every_cut_is_found(kept: int, last: Path) -> None:
    last.write_bytes(last.read_bytes()[:kept])
    with pytest.raises(DamagedCheckpointError):
        read_checkpoint(last)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before_with_one_line(
    last: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last.write_bytes(last.read_bytes()[:-100])
    assert checkpoint_step(last) == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"crux: {last} is damaged (")
    assert line.endswith("continuing from the checkpoint before it, step 10")
    assert checkpoint_step(last) == 10  # without another line
    assert not capsys.readouterr().err
    last.write_bytes(b"x")
    with pytest.raises(UserError, match=r"last\.ckpt is not a complete checkpoint .*; start the run again without"):
        checkpoint_step(last)


def test_a_kill_between_the_two_renames_loses_no_checkpoint(last: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last.replace(last.with_name("previous.ckpt"))
    assert checkpoint_step(last) == 20
    assert not capsys.readouterr().err


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoints_and_names_their_folder(
    call: str, last: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(UserError, match=f"the disk is full: {last.parent} has no room for last.ckpt"):
        write_checkpoint(last, make_checkpoint(30))
    monkeypatch.undo()
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert checkpoint_step(last) == 20


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"global_step": "20"}, "global_step is missing or of another kind"),
        ({"state_dict": []}, "state_dict is missing or of another kind"),
        ({"state_dict": {"weight": torch.ones(1, 2)}}, "it is of another network, with or without bias"),
        ({"state_dict": {"weight": torch.ones(2, 1), "bias": torch.zeros(1)}}, "weight has another shape or type"),
        ({"state_dict": {"weight": torch.ones(1, 2).double(), "bias": torch.zeros(1)}}, "weight has another shape or"),
        ({"state_dict": {"weight": torch.ones(1, 2), "bias": torch.tensor([torch.nan])}}, "bias has numbers that are"),
        ({"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2).double()}}}]}, "exp_avg has another type"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, make_checkpoint(10, **changes))
    with pytest.raises(UserError, match=reason):
        CheckedCheckpointIO(nn.Linear(2, 1)).load_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], 7, {"global_step": print}])
def test_content_that_is_no_checkpoint_is_refused_without_torchs_advice(content: object, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError) as caught:
        checkpoint_step(path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["nothing", "optimizer_states", "lr_schedulers", "global_step"])
def test_a_training_that_would_start_anew_in_part_is_refused(lost: str, tmp_path: Path) -> None:
    """Lightning passes over optimisers and schedules that a checkpoint does not have: Adam would start with empty moments."""
    module = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if lost != "optimizer_states":
        module(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    schedule.last_epoch = 0 if lost == "lr_schedulers" else 1
    files = CheckedCheckpointIO(module)
    files.loaded_step = 2 if lost == "global_step" else 1
    trainer = Mock(spec=L.Trainer)
    trainer.configure_mock(
        global_step=1, optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)]
    )
    callback = CheckContinuation(tmp_path / "last.ckpt", files)
    if lost == "nothing":
        callback.on_train_start(trainer, L.LightningModule())
        assert callback.started
        return
    with pytest.raises(UserError, match="its parts do not belong together"):
        callback.on_train_start(trainer, L.LightningModule())
