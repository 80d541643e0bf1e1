"""What an SAE is fed: token batches, or activations shuffled across sequences; both go on where a checkpoint left off."""

from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from crux.subjects.subject import Subject


class ShuffledActivations(Sequence[Tensor]):
    """Activations at one hook point, shuffled across the sequences of `group` token batches.

    Batch i is a pure function of (seed, i): group i // `group` is computed anew and permuted by (seed, group), so nothing
    has to be saved for a resumed run. The suffix of the subject never runs.

    Args:
        group: token batches whose activations are shuffled together.
        skip_positions: positions in the sequence that are left out; the batches are that much smaller.
    """

    def __init__(
        self,
        tokens: Sequence[Tensor],
        *,
        subject: Subject,
        hook: str,
        group: int,
        seed: int,
        skip_positions: Sequence[int],
    ) -> None:
        self.tokens, self.subject, self.hook, self.group, self.seed = tokens, subject, hook, group, seed
        self.skip_positions = frozenset(skip_positions)
        self._index = -1
        self._buffer = torch.empty(0)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Float[Tensor, "tokens d"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if i // self.group != self._index:
            self._fill(i // self.group)
        rows = len(self._buffer) // self._batches(self._index)
        place = i % self.group
        return self._buffer[place * rows : (place + 1) * rows]

    def _batches(self, index: int) -> int:
        return min(self.group, len(self.tokens) - index * self.group)

    def _fill(self, index: int) -> None:
        parts: list[Tensor] = []
        for i in range(index * self.group, index * self.group + self._batches(index)):
            batch = self.tokens[i].to(self.subject.device, non_blocking=True)
            clean = self.subject.clean(batch, capture=(self.hook,), final=False)
            kept = [p for p in range(batch.shape[1]) if p not in self.skip_positions]
            activations = clean.activations[self.hook]
            parts.append((activations[:, kept] if self.skip_positions else activations).flatten(0, 1))
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence([self.seed, index]).generate_state(1)[0]))
        activations = torch.cat(parts)
        order = torch.randperm(len(activations), generator=generator).to(activations.device)
        self._index, self._buffer = index, activations[order]


class _From(IterableDataset[Tensor]):
    """The batches from one on."""

    def __init__(self, batches: Sequence[Tensor], start: int) -> None:
        self.batches, self.start = batches, start

    def __iter__(self) -> Iterator[Tensor]:
        return (self.batches[i] for i in range(self.start, len(self.batches)))


class Feed(L.LightningDataModule):
    """Hands batches to the trainer, from the first one that the checkpoint had not yet seen.

    Lightning itself would replay an epoch's first batches after a resume.
    """

    def __init__(self, batches: Sequence[Tensor], *, accumulate: int) -> None:
        super().__init__()
        self.batches, self.accumulate, self.start = batches, accumulate, 0

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(_From(self.batches, self.start), batch_size=None)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"next": self.trainer.global_step * self.accumulate}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = state_dict["next"]
