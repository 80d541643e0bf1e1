"""Runs Lightning's trainer over one module, with checkpoints, short judgements and the progress bar."""

import logging
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from crux.config.errors import UserError
from crux.training.data import Feed
from crux.training.lightning_private import spare_sigterm_broadcast
from crux.training.processes import OwnSignals, shared_by
from crux.training.progress import RowLogger, StepBar

Sink = Callable[[int, dict[str, float]], None]


class Pace(NamedTuple):
    """How long, and how often what."""

    max_steps: int
    accumulate: int
    tokens_per_step: int
    unit: str
    """What those are that a step sees: tokens, or samples."""
    checkpoint_every: int
    val_every: int
    """0: never."""
    accelerator: str
    devices: int
    """Processes that share each batch."""
    precision: str
    """Lightning's word: `32-true` or `bf16-mixed`."""
    progress: bool


class ShortJudgement(L.Callback):
    """Calls `judge` every so many optimiser steps and logs what it returns."""

    def __init__(self, judge: Callable[[], dict[str, float]], *, every: int) -> None:
        self.judge, self.every = judge, every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step % self.every == 0:
            row = self.judge()
            for logger in trainer.loggers:
                logger.log_metrics(row, trainer.global_step)


def fit(
    module: L.LightningModule,
    feed: Feed,
    *,
    pace: Pace,
    checkpoints: Path,
    resume: Path | None,
    sinks: list[Sink],
    judge: Callable[[], dict[str, float]] | None,
    shown: dict[str, str],
    abandoned: Callable[[], None] | None,
) -> float | None:
    """Trains up to `pace.max_steps`; returns training tokens a second, None where no step was left to do.

    `abandoned` is called where a run over several devices has to be ended with a process that hangs.

    Raises:
        NonFiniteLossError: where the loss stopped being a number.
        LostProcessError: where the process of another device failed.
        KeyboardInterrupt: on Ctrl-C; the last checkpoint stays.
    """
    for room in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(room).setLevel(logging.WARNING)  # its list of devices, its advertisement
    bar = StepBar(tokens_per_step=pace.tokens_per_step, unit=pace.unit, shown=shown, enabled=pace.progress)
    last = ModelCheckpoint(
        dirpath=checkpoints,
        filename="last",
        every_n_train_steps=pace.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
    )
    callbacks: list[L.Callback] = [bar, last]
    if judge is not None and pace.val_every:
        callbacks.insert(0, ShortJudgement(judge, every=pace.val_every))
    if pace.devices > 1:
        callbacks.append(OwnSignals())
    elsewhere = partial(
        fit, module, feed, pace=pace._replace(progress=False), checkpoints=checkpoints, resume=resume, sinks=[], judge=None,
        shown={}, abandoned=None,
    )  # fmt: skip
    together = shared_by(pace.devices, training=elsewhere, abandon=abandoned or (lambda: None))
    with warnings.catch_warnings(), together as strategy:
        # Lightning's hints that do not apply: batches come from memory or the device, none are skipped, a run that goes
        # on has a checkpoint already, and a cluster's machine may be used without its scheduler
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
        trainer = L.Trainer(
            max_steps=pace.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=pace.accumulate,
            accelerator="gpu" if pace.accelerator == "cuda" else pace.accelerator,
            devices=pace.devices,
            strategy=strategy,
            precision=pace.precision,  # pyright: ignore[reportArgumentType]
            logger=RowLogger(*sinks, lambda step, row: bar.row.update(row)),
            callbacks=callbacks,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=checkpoints.parent,
        )
        spare_sigterm_broadcast(trainer)
        try:
            trainer.fit(module, datamodule=feed, ckpt_path=resume, weights_only=True if resume else None)
        except SystemExit as stop:  # Lightning turns Ctrl-C into one; SIGTERM's stays one
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None
            raise
    return bar.tokens_per_second(trainer)


def checkpoint_step(path: Path) -> int:
    """The optimiser step that a checkpoint was written after; 0 where there is none yet.

    Raises:
        UserError: where the file is no whole checkpoint.
    """
    if not path.exists():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is no whole checkpoint ({reason}); start the run anew without resume") from error
