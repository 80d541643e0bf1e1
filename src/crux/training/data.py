"""Pass batches to the trainer. A resumed run continues with the first batch that its checkpoint has not seen."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from crux.training import ranks


def select_rank_part(batch: Any) -> Any:
    """Return this rank's sequences of a token batch. Other batches, of activations, have been divided among the ranks before."""
    return batch[ranks.rank_slice(len(batch))] if isinstance(batch, Tensor) else batch


class ConcatenatedBatches(Sequence[Any]):
    """The batches of `first`, then those of `second` from its index `len(first)` on: `first` replaces the beginning of `second`."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.second)

    def __getitem__(self, i: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.first[i] if i < len(self.first) else self.second[i]


class _BatchesFrom(IterableDataset[Any]):
    """The batches from index `start` on."""

    def __init__(self, batches: Sequence[Any], start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Any]:
        return (select_rank_part(self.batches[i]) for i in range(self.start, len(self.batches)))


class Feed(L.LightningDataModule):
    """A data module that yields the batches from the first one that the checkpoint has not seen.

    Lightning itself would repeat the first batches of the epoch after resuming.
    """

    def __init__(self, batches: Sequence[Any], *, accumulate: int) -> None:
        super().__init__()
        self.batches, self.accumulate, self.start = batches, accumulate, 0

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_BatchesFrom(self.batches, self.start), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"next": self.trainer.global_step * self.accumulate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["next"]
