"""Batches of activations at some hook points, shuffled across sequences."""

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
    """Rows of activations at several hook points; the same row belongs to the same token at all of them."""

    values: dict[str, Float[Tensor, "tokens _d"]]
    """The activations, by hook point."""
    gradients: dict[str, Float[Tensor, "tokens _d"]]
    """The gradients of a label loss, by hook point; empty if no SAE uses them."""

    def select_rows(self, index: Any) -> "Activations":
        """Return some of the rows."""
        return Activations(
            {h: v[index] for h, v in self.values.items()}, {h: g[index] for h, g in self.gradients.items()}
        )


class ShuffledActivations(Sequence[Activations]):
    """Activations at some hook points, shuffled across the sequences of `group` token batches.

    Batch i is a pure function of (seed, i): the activations of its group, i // `group`, are computed anew and permuted with a
    generator seeded by (seed, i // `group`). So nothing has to be saved for a resumed run. The suffix of the subject only runs if
    gradients are needed.

    In a distributed run, each process computes its share of every token batch, exchanges rows with the others once per group,
    and returns its share of the rows of batch i. Together the processes see the same batch as a single process would.

    Args:
        gradients: the gradients that the encoders use besides activations; None: they use none.
        group: number of token batches whose activations are shuffled together.
        skip_positions: positions in the sequence that are left out, which makes the batches smaller.
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
        self._buffered_group = -1
        self._buffer = Activations({}, {})  # this process's rows of all batches of the group, batch by batch

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> Activations:  # pyright: ignore[reportIncompatibleMethodOverride]
        if i // self.group != self._buffered_group:
            self._fill_buffer(i // self.group)
        n_rows = len(self._buffer.values[self.hooks[0]]) // self._count_batches(self._buffered_group)
        place = i % self.group
        return self._buffer.select_rows(slice(place * n_rows, (place + 1) * n_rows))

    def _count_batches(self, index: int) -> int:
        """Return the number of batches in a group; the last group may be shorter."""
        return min(self.group, len(self.tokens) - index * self.group)

    def _fill_buffer(self, index: int) -> None:
        """Compute and permute the activations of the group with this index."""
        self._buffer = Activations({}, {})  # free the old rows before the new ones are computed
        # the first seed, the same in all processes, is that of the permutation; the last one, another in each, that of drawn labels
        seeds = np.random.SeedSequence([self.seed, index]).generate_state(2 + ranks.current_rank())
        generator = torch.Generator(self.subject.device).manual_seed(int(seeds[-1]))
        parts = [
            self._compute_rows(self.tokens[i], generator)
            for i in range(index * self.group, index * self.group + self._count_batches(index))
        ]
        joined = Activations(
            {h: gather_rows([part.values[h] for part in parts]) for h in parts[0].values},
            {h: gather_rows([part.gradients[h] for part in parts]) for h in parts[0].gradients},
        )
        n_rows = len(joined.values[self.hooks[0]])
        permutation = torch.randperm(n_rows, generator=torch.Generator().manual_seed(int(seeds[0])))
        batches = permutation.view(len(parts), -1)
        rows = batches[:, ranks.rank_slice(batches.shape[1])].flatten()
        self._buffered_group, self._buffer = index, joined.select_rows(rows.to(self.subject.device, non_blocking=True))

    def _compute_rows(self, tokens: Tensor, generator: torch.Generator) -> Activations:
        """Return this process's share of the rows of a token batch, not yet permuted."""
        tokens = tokens[ranks.rank_slice(len(tokens))].to(self.subject.device, non_blocking=True)
        if self.gradients is None:
            clean, gradients = self.subject.clean(tokens, capture=self.hooks, final=False), {}
        else:
            clean, gradients = self.gradients.clean(tokens, capture=self.hooks, generator=generator)
        positions = torch.tensor([p for p in range(tokens.shape[1]) if p not in self.skip_positions])
        kept = positions.to(
            self.subject.device, non_blocking=True
        )  # an index that is a list would be copied with a wait

        def flatten_kept(activation: Tensor) -> Tensor:
            return (activation[:, kept] if self.skip_positions else activation).flatten(0, 1)

        return Activations(
            {h: flatten_kept(clean.activations[h]) for h in self.hooks},
            {h: flatten_kept(g) for h, g in gradients.items()},
        )


def gather_rows(parts: Sequence[Float[Tensor, "share d"]]) -> Float[Tensor, "rows d"]:
    """Return all rows of some batches, batch by batch, given this process's share of each; the processes exchange their shares."""
    return ranks.gather(torch.stack(list(parts))).transpose(0, 1).flatten(0, 2)
