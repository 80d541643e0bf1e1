"""Activations as batches: rows at some hook points, shuffled across sequences."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.label_gradients import LabelGradients
from crux.subjects.subject import Subject
from crux.training import ranks


class Activations(NamedTuple):
    """Rows of activations, the same token in the same row of each."""

    values: dict[str, Float[Tensor, "tokens _d"]]
    """By hook point."""
    gradients: dict[str, Float[Tensor, "tokens _d"]]
    """A label's gradient at them, by hook point; empty where no SAE looks at one."""

    def select_rows(self, index: Any) -> "Activations":
        """Some of the rows."""
        return Activations(
            {h: v[index] for h, v in self.values.items()}, {h: g[index] for h, g in self.gradients.items()}
        )


class ShuffledActivations(Sequence[Activations]):
    """Activations at some hook points, shuffled across the sequences of `group` token batches.

    Batch i is a pure function of (seed, i): group i // `group` is computed anew and permuted by (seed, group), so nothing
    has to be saved for a resumed run. The suffix of the subject runs only where gradients are wanted.

    Of several ranks, each computes its share of every token batch, takes in the others' once a group, and hands out its share
    of the rows of batch i: together they see the batch that one process would.

    Args:
        gradients: None: none are wanted.
        group: token batches whose activations are shuffled together.
        skip_positions: positions in the sequence that are left out; the batches are that much smaller.
    """

    def __init__(
        self,
        tokens: Sequence[Tensor],
        *,
        subject: Subject,
        hooks: Collection[str],
        gradients: LabelGradients | None,
        group: int,
        seed: int,
        skip_positions: Sequence[int],
    ) -> None:
        self.tokens, self.subject, self.hooks, self.gradients = tokens, subject, tuple(hooks), gradients
        self.group, self.seed, self.skip_positions = group, seed, frozenset(skip_positions)
        self._index = -1
        self._buffer = Activations({}, {})

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Activations:  # pyright: ignore[reportIncompatibleMethodOverride]
        if i // self.group != self._index:
            self._fill(i // self.group)
        rows = len(self._buffer.values[self.hooks[0]]) // self._batches(self._index)
        place = i % self.group
        return self._buffer.select_rows(slice(place * rows, (place + 1) * rows))

    def _batches(self, index: int) -> int:
        return min(self.group, len(self.tokens) - index * self.group)

    def _fill(self, index: int) -> None:
        self._buffer = Activations({}, {})  # let go of the old rows before the new ones are made
        seeds = np.random.SeedSequence([self.seed, index]).generate_state(2 + ranks.current_rank())
        generator = torch.Generator(self.subject.device).manual_seed(int(seeds[-1]))
        parts = [
            self._activations(self.tokens[i], generator)
            for i in range(index * self.group, index * self.group + self._batches(index))
        ]
        joined = Activations(
            {h: gather_rows([part.values[h] for part in parts]) for h in parts[0].values},
            {h: gather_rows([part.gradients[h] for part in parts]) for h in parts[0].gradients},
        )
        n_rows = len(joined.values[self.hooks[0]])
        order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(int(seeds[0])))
        batches = order.view(len(parts), -1)
        order = batches[:, ranks.rank_slice(batches.shape[1])].flatten()
        self._index, self._buffer = index, joined.select_rows(order.to(self.subject.device))

    def _activations(self, tokens: Tensor, generator: torch.Generator) -> Activations:
        tokens = tokens[ranks.rank_slice(len(tokens))].to(self.subject.device, non_blocking=True)
        if self.gradients is None:
            clean, gradients = self.subject.clean(tokens, capture=self.hooks, final=False), {}
        else:
            clean, gradients = self.gradients.clean(tokens, capture=self.hooks, generator=generator)
        kept = [p for p in range(tokens.shape[1]) if p not in self.skip_positions]

        def flat(activation: Tensor) -> Tensor:
            return (activation[:, kept] if self.skip_positions else activation).flatten(0, 1)

        return Activations(
            {h: flat(clean.activations[h]) for h in self.hooks}, {h: flat(g) for h, g in gradients.items()}
        )


def gather_rows(parts: Sequence[Float[Tensor, "share d"]]) -> Float[Tensor, "rows d"]:
    """The rows of all ranks' shares of some batches, in the batches' order."""
    return ranks.gather(torch.stack(list(parts))).transpose(0, 1).flatten(0, 2)
