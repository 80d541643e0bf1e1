"""The progress bar of a training run: step, loss, L0 and tokens per second."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers.logger import Logger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from crux.config.notebook_bars import NotebookBars, in_notebook
from crux.config.progress import LIVE


class StepBar(ProgressBar):
    """A bar over optimiser steps that shows values from the newest row of the history, so that it needs no work of the device.

    Args:
        tokens_per_step: number of tokens per optimiser step, or of other items that `unit` names.
        labels: the label on the bar for each key of the row that it shows.
        enabled: True to draw the bar; the rate is measured even if it is not drawn.
    """

    def __init__(self, *, tokens_per_step: int, unit: str, labels: dict[str, str], enabled: bool) -> None:
        super().__init__()
        self.tokens_per_step, self.unit, self.labels, self.enabled = tokens_per_step, unit, labels, enabled
        self.seconds = 0.0
        self.first_step = 0
        self.row: dict[str, float] = {}
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[row]}"),
        )
        self.bar: Progress = (
            NotebookBars(*columns, disable=not enabled)
            if in_notebook()
            else Progress(*columns, console=LIVE, redirect_stdout=sys.stdout.isatty(), disable=not enabled)
        )

    def disable(self) -> None:
        """Draw nothing from now on."""
        self.enabled = False
        self.bar.disable = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first_step, self.started = trainer.global_step, time.perf_counter()
        self.task = self.bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, row="")
        self.bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.enabled:
            return
        words = [f"{label} {self.row[key]:.3g}" for key, label in self.labels.items() if key in self.row]
        steps = trainer.global_step - self.first_step
        rate = steps * self.tokens_per_step / max(1e-9, time.perf_counter() - self.started)
        self.bar.update(self.task, completed=trainer.global_step, row=" ".join([*words, f"{rate:,.0f} {self.unit}/s"]))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()

    def tokens_per_second(self, trainer: L.Trainer) -> float | None:
        """Return tokens per second since the start in this process; None if no step was left to do.

        The time includes short evaluations and checkpoints.
        """
        steps = trainer.global_step - self.first_step
        return steps * self.tokens_per_step / self.seconds if self.seconds else None


class RowLogger(Logger):
    """A Lightning logger that calls each of `sinks` with the step and the row of the history."""

    def __init__(self, *sinks: Any) -> None:
        super().__init__()
        self.sinks = sinks

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: crux.runs records the configuration."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        for sink in self.sinks:
            sink(step, metrics)
