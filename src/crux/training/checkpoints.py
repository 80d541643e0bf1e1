"""Checkpoints of a training: written completely or not at all, with a checksum, and with the one before as a reserve.

`last.ckpt` is a file of `torch.save`, which is a zip archive. The archive's comment holds the SHA-256 of everything before it, so that any
change of any byte is found. When a checkpoint is complete, it takes the name `last.ckpt`, and the one before becomes `previous.ckpt`, from
which a run continues if `last.ckpt` is damaged.
"""

import hashlib
import io
import pickle
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.config.files import replacing

COMMENT = b"sha256:"
COMMENT_BYTES = len(COMMENT) + 64
"""Length of the archive's comment: the word and the checksum in hexadecimal."""

KEYS = {
    "global_step": int,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "callbacks": dict,
}
"""What every checkpoint of Lightning contains, by type."""


class DamagedCheckpointError(UserError):
    """A checkpoint cannot be used; the message says why, without the file's name."""


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's way to write and read checkpoints, with crux's checks.

    Args:
        module: the module that is trained; a checkpoint of another one is refused.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.loaded_step: int | None = None
        """The step of the checkpoint that has been read; None: none has been."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_checkpoint(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        try:
            checkpoint = read_checkpoint(Path(path))
            check_module_state(checkpoint, self.module)
        except DamagedCheckpointError as error:
            raise _explain_useless(Path(path), error) from error
        self.loaded_step = checkpoint["global_step"]
        return checkpoint


class CheckContinuation(L.Callback):
    """A callback that checks that a resumed run continues exactly where its checkpoint says.

    Args:
        path: the checkpoint.
        files: what reads the checkpoint.
    """

    def __init__(self, path: Path, files: CheckedCheckpointIO) -> None:
        self.path, self.files = path, files
        self.started = False
        """True once everything has been restored from the checkpoint."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = self.files.loaded_step
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        complete = all(optimizer.state for optimizer in trainer.optimizers) or step == 0  # else Adam would start anew
        in_step = all(schedule.last_epoch == step for schedule in schedules)
        shapes_fit = all(
            value.shape == parameter.shape
            for optimizer in trainer.optimizers
            for parameter, state in optimizer.state.items()
            for value in state.values()
            if isinstance(value, Tensor) and value.ndim
        )
        if trainer.global_step != step or not (complete and in_step and shapes_fit):
            raise _explain_useless(self.path, DamagedCheckpointError("its parts do not belong together"))
        self.started = True


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one with this name becomes `previous.ckpt` as soon as the new one is complete.

    Raises:
        UserError: if the disk is full; the checkpoints stay as they were.
    """
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    content = buffer.getbuffer()
    assert bytes(content[-2:]) == b"\0\0", "the archive already has a comment"
    struct.pack_into("<H", content, len(content) - 2, COMMENT_BYTES)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, keep_as=_previous(path)) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.write(COMMENT + hashlib.sha256(content).hexdigest().encode())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        DamagedCheckpointError: if a byte has changed, or it is not a checkpoint with finite numbers.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(error.strerror or type(error).__name__) from error
    body, comment = content[:-COMMENT_BYTES], content[-COMMENT_BYTES:]
    if not comment.startswith(COMMENT):
        raise DamagedCheckpointError("it has no checksum: it is incomplete, or from an earlier version of crux")
    if comment != COMMENT + hashlib.sha256(body).hexdigest().encode():
        raise DamagedCheckpointError("its checksum is wrong")
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpointError("it cannot be read as tensors, numbers and text") from error
    if not isinstance(checkpoint, dict):
        raise DamagedCheckpointError(f"it is a {type(checkpoint).__name__}")
    for key, kind in KEYS.items():
        if type(checkpoint.get(key)) is not kind and not (kind is dict and isinstance(checkpoint.get(key), dict)):
            raise DamagedCheckpointError(f"{key} is missing or of another kind")
    for name, tensor in _list_tensors({k: v for k, v in checkpoint.items() if k != "callbacks"}):  # those use ±∞
        if tensor.is_complex() or not bool(tensor.isfinite().all()):
            raise DamagedCheckpointError(f"{name} has numbers that are not finite")
    return checkpoint


def check_module_state(checkpoint: Mapping[str, Any], module: nn.Module) -> None:
    """Check that the parameters and buffers in a checkpoint have the names, shapes and types of those of a module.

    Raises:
        DamagedCheckpointError: if they do not.
    """
    saved, expected = checkpoint["state_dict"], module.state_dict()
    if missing := expected.keys() ^ saved.keys():
        raise DamagedCheckpointError(f"it is of another network, with or without {min(map(str, missing))}")
    for name, tensor in expected.items():
        other = saved[name]
        if not isinstance(other, Tensor) or other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise DamagedCheckpointError(f"{name} has another shape or type than in this run")
    kinds = {parameter.dtype for parameter in module.parameters()}
    for name, tensor in _list_tensors(checkpoint["optimizer_states"]):
        if tensor.is_floating_point() and tensor.dtype not in kinds | {torch.float32}:
            raise DamagedCheckpointError(f"optimizer_states{name} has another type than in this run")


def checkpoint_step(path: Path) -> int:
    """Return the optimiser step after which the newest complete checkpoint was written; 0 if there is no checkpoint.

    If `last.ckpt` is damaged or missing, `previous.ckpt` takes its place, and a line says so.

    Args:
        path: the file `last.ckpt`.

    Raises:
        UserError: if no checkpoint is complete.
    """
    previous = _previous(path)
    if not path.exists() and not previous.exists():
        return 0
    if path.is_dir():
        raise _explain_useless(path, DamagedCheckpointError("it is a folder"))
    damage = None
    if path.exists():
        try:
            return _read_step(path)
        except DamagedCheckpointError as error:
            damage = error
    try:
        step = _read_step(previous)
    except DamagedCheckpointError as error:
        raise _explain_useless(path, damage or error) from error
    previous.replace(path)
    if damage is not None:
        print(
            f"crux: {path} is damaged ({damage}); continuing from the checkpoint before it, step {step}",
            file=sys.stderr,
            flush=True,
        )
    return step


def remove_checkpoints(path: Path) -> None:
    """Remove `last.ckpt`, the checkpoint before it, and their folder if it is empty then."""
    _previous(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


def _previous(path: Path) -> Path:
    return path.with_name("previous.ckpt")


def _read_step(path: Path) -> int:
    step = read_checkpoint(path)["global_step"]
    if step < 0:
        raise DamagedCheckpointError("its step is negative")
    return step


def _explain_useless(path: Path, damage: DamagedCheckpointError) -> UserError:
    return UserError(f"{path} is not a complete checkpoint ({damage}); start the run again without resume")


def _list_tensors(node: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested containers, each with its path."""
    match node:
        case Tensor():
            yield path, node
        case Mapping():
            for key, value in node.items():
                yield from _list_tensors(value, f"{path}/{key}")
        case list() | tuple():
            for i, value in enumerate(node):
                yield from _list_tensors(value, f"{path}/{i}")
        case _:
            return
