"""Processes of a run on several devices: memory-mapped text is shared, and SIGTERM keeps its handler."""

import pickle
import signal
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from crux.training.processes import KeepSigtermHandler


def test_memory_mapped_text_is_pickled_as_a_position_in_its_file(tmp_path: Path) -> None:
    """The import of crux.training.processes above has registered how np.memmap is pickled."""
    numbers = np.arange(100_000, dtype=np.uint16)
    (tmp_path / "tokens").write_bytes(b"header!!" + numbers.tobytes())
    # a slice, and a slice of a slice, have another position in the file than the whole array, which begins after the header
    whole = np.memmap(tmp_path / "tokens", np.uint16, mode="r", offset=8, shape=(100_000,))
    for part, expected in ((whole, numbers), (whole[1000:], numbers[1000:]), (whole[1000:][5:9], numbers[1005:1009])):
        pickled = pickle.dumps(part)
        assert len(pickled) < 1000  # the numbers themselves take 200 kB
        loaded = pickle.loads(pickled)
        assert isinstance(loaded, np.memmap)
        assert loaded.dtype == np.uint16
        assert np.array_equal(loaded, expected)


class OneStep(L.LightningModule):
    """A module that records the handler of SIGTERM during its training step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.handler: Any = None

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.handler = signal.getsignal(signal.SIGTERM)
        return self.layer(*batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*", "ignore:.*does not have many workers.*")
def test_training_keeps_the_handler_of_sigterm() -> None:
    """Lightning replaces the handler when `fit` begins; KeepSigtermHandler restores it."""
    before = signal.getsignal(signal.SIGTERM)
    module = OneStep()
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[KeepSigtermHandler()],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(1, 1))))
    assert module.handler is before
