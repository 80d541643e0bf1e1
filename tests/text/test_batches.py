"""Batches: a pure function of (seed, i), each window once per epoch, a new offset and order in each epoch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crux.config.errors import UserError
from crux.text.batches import Batches


def stream(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint16)


sizes = st.tuples(st.integers(20, 400), st.integers(1, 10), st.integers(1, 5), st.integers(0, 2**32 - 1))


@settings(deadline=None, max_examples=50)
@given(sizes, st.lists(st.integers(0, 30), max_size=12))
def test_batch_depends_only_on_seed_and_index(size, order):
    n, context, batch, seed = size

    def fresh() -> Batches:
        return Batches(stream(n), context=context, batch=batch, seed=seed, n_batches=31)

    batches = fresh()
    for i in order:
        assert torch.equal(batches[i], fresh()[i])


@settings(deadline=None, max_examples=50)
@given(sizes, st.integers(0, 3))
def test_epoch_contains_each_window_once(size, epoch):
    n, context, _, seed = size
    windows = Batches(stream(n), context=context, batch=1, seed=seed, n_batches=10**6)
    per_epoch = windows.windows_per_epoch
    starts = sorted(int(windows[epoch * per_epoch + i][0, 0]) for i in range(per_epoch))
    assert starts == list(range(starts[0], starts[0] + per_epoch * context, context))
    assert 0 <= starts[0] < context
    assert starts[-1] + context <= n
    assert per_epoch >= (n - context + 1) // context  # at most the offset and part of one window are left out
    for i in range(per_epoch):
        row = windows[epoch * per_epoch + i][0]
        assert torch.equal(row, row[0] + torch.arange(context))


def test_epochs_differ_in_offset_and_order():
    windows = Batches(stream(1000), context=50, batch=1, seed=0, n_batches=10**6)
    per_epoch = windows.windows_per_epoch
    assert per_epoch == 19
    epochs = [[int(windows[e * per_epoch + i][0, 0]) for i in range(per_epoch)] for e in range(8)]
    assert len({min(e) for e in epochs}) > 4
    assert len({tuple(s - min(e) for s in e) for e in epochs}) == 8


def test_seeds_differ():
    first, second = (Batches(stream(1000), context=10, batch=4, seed=s, n_batches=5) for s in (0, 1))
    assert not torch.equal(first[0], second[0])


def test_batch_across_two_epochs_is_complete():
    windows = Batches(stream(100), context=10, batch=7, seed=3, n_batches=9)
    assert windows[1].shape == (7, 10)
    assert windows[1].dtype == torch.int64
    single = Batches(stream(100), context=10, batch=1, seed=3, n_batches=63)
    assert torch.equal(windows[1], torch.cat([single[i] for i in range(7, 14)]))


def test_length_and_index_errors():
    windows = Batches(stream(100), context=10, batch=2, seed=0, n_batches=3)
    assert len(windows) == 3
    assert len(list(windows)) == 3
    for i in (3, -1):
        with pytest.raises(IndexError):
            windows[i]


def test_too_short():
    assert len(Batches(stream(20), context=10, batch=1, seed=0, n_batches=1)) == 1
    with pytest.raises(UserError, match="too short: 19 tokens, at least 20"):
        Batches(stream(19), context=10, batch=1, seed=0, n_batches=1)
