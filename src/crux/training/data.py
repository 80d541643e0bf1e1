"""Hands batches to the trainer; a resumed run continues with the first batch that its checkpoint had not seen."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from crux.training import ranks


def own(batch: Any) -> Any:
    """This rank's sequences of a token batch; activations come shared already."""
    return batch[ranks.share(len(batch))] if isinstance(batch, Tensor) else batch


class Joined(Sequence[Any]):
    """The batches of `first`, then those of `second` from where `first` ends."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        self.first, self.second = first, second

    def __len__(self) -> int:
        return len(self.second)

    def __getitem__(self, i: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.first[i] if i < len(self.first) else self.second[i]


class _From(IterableDataset[Any]):
    """The batches from one on."""

    def __init__(self, batches: Sequence[Any], start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Any]:
        return (own(self.batches[i]) for i in range(self.start, len(self.batches)))


class Feed(L.LightningDataModule):
    """Hands batches to the trainer, from the first one that the checkpoint had not yet seen.

    Lightning itself would replay an epoch's first batches after a resume.
    """

    def __init__(self, batches: Sequence[Any], *, accumulate: int) -> None:
        super().__init__()
        self.batches, self.accumulate, self.start = batches, accumulate, 0

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_From(self.batches, self.start), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"next": self.trainer.global_step * self.accumulate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["next"]
