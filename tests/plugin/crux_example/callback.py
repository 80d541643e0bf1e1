"""The Lightning callback of the example plug-in."""

from pathlib import Path
from typing import Any

import lightning as L


class StepCounter(L.Callback):
    """A callback that writes the number of optimiser steps to a file when training ends."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule, **kwargs: Any) -> None:
        self.path.write_text(str(trainer.global_step))
