"""Batches: a pure function of (seed, i), each window once per epoch, a new offset and order in each epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crux.config.errors import UserError
from crux.text.batches import Batches


def number_tokens(n: int) -> np.ndarray:
    """Return tokens 0, 1, …, n − 1, so that a window shows its position."""
    return np.arange(n, dtype=np.uint16)


# number of tokens (never fewer than two windows), tokens per window, windows per batch, seed
sizes = st.tuples(st.integers(20, 400), st.integers(1, 10), st.integers(1, 5), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=50)
@given(sizes, st.lists(st.integers(0, 30), max_size=12))
def test_batch_depends_only_on_seed_and_index(size, order):
    n, context, batch, seed = size

    def make_batches() -> Batches:
        return Batches(number_tokens(n), context=context, batch=batch, seed=seed, n_batches=31)

    batches = make_batches()  # read in any order, repeatedly
    for i in order:
        assert torch.equal(batches[i], make_batches()[i])


@settings(deadline=None, max_examples=50)
@given(sizes, st.integers(0, 3))
def test_epoch_contains_each_window_once(size, epoch):
    n, context, _, seed = size
    windows = Batches(number_tokens(n), context=context, batch=1, seed=seed, n_batches=10**6)  # one window per batch
    per_epoch = windows.windows_per_epoch
    starts = sorted(int(windows[epoch * per_epoch + i][0, 0]) for i in range(per_epoch))
    assert starts == list(range(starts[0], starts[0] + per_epoch * context, context))
    assert 0 <= starts[0] < context
    assert starts[-1] + context <= n
    # left out are at most context − 1 tokens before the first window, the largest offset, and as many after the last window
    assert n - per_epoch * context <= 2 * (context - 1)
    for i in range(per_epoch):
        row = windows[epoch * per_epoch + i][0]
        assert torch.equal(row, row[0] + torch.arange(context))


def test_epochs_differ_in_offset_and_order():
    windows = Batches(number_tokens(1000), context=50, batch=1, seed=0, n_batches=10**6)  # one window per batch
    per_epoch = windows.windows_per_epoch
    assert per_epoch == 19  # 20 windows fit at offset 0, but only 19 at the offsets 1 to 49
    epochs = [[int(windows[epoch * per_epoch + i][0, 0]) for i in range(per_epoch)] for epoch in range(8)]
    offsets = [min(starts) for starts in epochs]
    assert len(set(offsets)) > 4  # two of eight epochs may have the same offset by chance
    # without the offset, the start of a window depends only on the order
    orders = {tuple(start - offset for start in starts) for starts, offset in zip(epochs, offsets, strict=True)}
    assert len(orders) == 8


def test_seeds_differ():
    first, second = (Batches(number_tokens(1000), context=10, batch=4, seed=s, n_batches=5) for s in (0, 1))
    assert not torch.equal(first[0], second[0])


def test_batch_across_two_epochs_is_complete():
    batches = Batches(number_tokens(100), context=10, batch=7, seed=3, n_batches=9)
    assert batches.windows_per_epoch == 9  # so that batch 1, windows 7 to 13, has windows of both epochs
    assert batches[1].shape == (7, 10)
    assert batches[1].dtype == torch.int64
    windows = Batches(number_tokens(100), context=10, batch=1, seed=3, n_batches=63)
    assert torch.equal(batches[1], torch.cat([windows[i] for i in range(7, 14)]))


def test_length_and_index_errors():
    batches = Batches(number_tokens(100), context=10, batch=2, seed=0, n_batches=3)
    assert len(batches) == 3
    assert len(list(batches)) == 3
    for i in (3, -1):
        with pytest.raises(IndexError):
            batches[i]


def test_too_short():
    assert len(Batches(number_tokens(20), context=10, batch=1, seed=0, n_batches=1)) == 1
    with pytest.raises(UserError, match="too short: 19 tokens, at least 20"):
        Batches(number_tokens(19), context=10, batch=1, seed=0, n_batches=1)
