"""Train a Lightning module, with checkpoints, short evaluations and a progress bar."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from crux.config.errors import UserError
from crux.config.schema import Trainer
from crux.training.checkpoints import CheckContinuation, CheckedCheckpointIO
from crux.training.data import Feed
from crux.training.devices import Hardware
from crux.training.lightning_private import skip_sigterm_broadcast
from crux.training.processes import KeepSigtermHandler, start_processes
from crux.training.progress import RowLogger, StepBar

Sink = Callable[[int, dict[str, float]], None]
"""A function that receives each row of the history, with its step."""


class ShortEvaluations(NamedTuple):
    """Settings of the short evaluations during training."""

    evaluate: Callable[[], dict[str, float]]
    """A function that returns the row of an evaluation."""
    every: int
    """Optimiser steps between evaluations; 0: no evaluations."""


class EvaluateRegularly(L.Callback):
    """A callback that evaluates after every `evaluations.every` optimiser steps and adds the values to the history."""

    def __init__(self, evaluations: ShortEvaluations) -> None:
        self.evaluations = evaluations

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and trainer.global_step % self.evaluations.every == 0:
            row = self.evaluations.evaluate()
            for logger in trainer.loggers:
                logger.log_metrics(row, trainer.global_step)


def fit(
    module: L.LightningModule,
    feed: Feed,
    *,
    trainer: Trainer,
    hardware: Hardware,
    items_per_step: int,
    unit: str,
    checkpoints: Path,
    resume: Path | None,
    sinks: Sequence[Sink],
    evaluations: ShortEvaluations | None,
    bar_labels: Mapping[str, str],
    callbacks: Sequence[L.Callback],
    on_abandon: Callable[[], None] | None,
) -> float | None:
    """Train for `trainer.max_steps` optimiser steps; return training items per second, None if no step was left to do.

    Args:
        items_per_step: number of items per optimiser step; `unit` says what an item is, such as tokens.
        checkpoints: folder of the checkpoints.
        resume: checkpoint from which to continue; None: start at step 0.
        sinks: functions that are called with the step and each row of the history.
        bar_labels: the label on the progress bar for each key of the newest row that it shows.
        callbacks: callbacks of the user.
        on_abandon: called before a run over several devices is ended because a process hangs.

    Raises:
        UserError: if the checkpoint is damaged or of another run, or the disk is full.
        NonFiniteLossError: if the loss stopped being a number.
        LostProcessError: if the process of another device failed.
        KeyboardInterrupt: on Ctrl-C; the last checkpoint is kept.
    """
    bar = StepBar(tokens_per_step=items_per_step, unit=unit, labels=dict(bar_labels), enabled=trainer.progress)
    last = ModelCheckpoint(
        dirpath=checkpoints,
        filename="last",
        every_n_train_steps=trainer.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
    )
    standard: list[L.Callback] = [bar, last]
    if evaluations is not None and evaluations.every:
        standard.insert(0, EvaluateRegularly(evaluations))
    files = CheckedCheckpointIO(module)
    continuation = CheckContinuation(resume, files) if resume is not None else None
    if continuation is not None:
        standard.append(continuation)
    if hardware.devices > 1:
        standard.append(KeepSigtermHandler())
    in_other_processes = partial(
        fit, module, feed, trainer=replace(trainer, progress=False), hardware=hardware, items_per_step=items_per_step, unit=unit,
        checkpoints=checkpoints, resume=resume, sinks=[], evaluations=None, bar_labels={}, callbacks=[], on_abandon=None,
    )  # fmt: skip
    processes = start_processes(hardware.devices, training=in_other_processes, on_abandon=on_abandon or (lambda: None))
    with _silence_hints(), processes as strategy:
        loop = L.Trainer(
            max_steps=trainer.max_steps,
            max_epochs=-1,
            accumulate_grad_batches=feed.accumulate,
            accelerator="gpu" if hardware.accelerator == "cuda" else hardware.accelerator,
            devices=hardware.devices,
            strategy=strategy,
            precision=hardware.precision,  # pyright: ignore[reportArgumentType]
            logger=RowLogger(*sinks, lambda step, row: bar.row.update(row)),
            callbacks=[*standard, *callbacks],
            plugins=[files],
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=checkpoints.parent,
        )
        skip_sigterm_broadcast(loop)
        try:
            loop.fit(module, datamodule=feed, ckpt_path=resume, weights_only=True if resume else None)
        except SystemExit as stop:  # Lightning turns Ctrl-C into one, which is undone here; that of SIGTERM is kept
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None
            raise
        except (KeyError, IndexError, TypeError, RuntimeError, ValueError, AttributeError) as error:
            if continuation is None or continuation.started or isinstance(error, UserError):
                raise
            raise UserError(  # every other reason would also stop a new run
                f"{resume} does not fit this run ({type(error).__name__}); start the run again without resume"
            ) from error
    return bar.tokens_per_second(loop)


@contextmanager
def _silence_hints() -> Iterator[None]:
    """Silence Lightning's hints that do not apply to crux.

    Batches come from memory or the device, so workers would not help. The checkpoint folder of a resumed run is not empty, and may have
    been moved. With manual optimisation, checkpoints are written right after the step. A cluster's machine may be used without its
    scheduler. Some jobs train on the CPU although there is a GPU.
    """
    hints = (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        "Using ModelCheckpoint with manual optimization",
        "Checkpoint directory .* exists and is not empty",
        "The dirpath has changed from",
        "The `srun` command is available on your system but is not used",
        "GPU available but not used",
    )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no list of devices, no advertisement
    with warnings.catch_warnings():
        for hint in hints:
            warnings.filterwarnings("ignore", message=hint)
        yield
