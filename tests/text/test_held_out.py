"""The held-out windows: evenly spaced over the stream, without overlap."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crux.text.held_out import spread_batches


def list_starts(n: int, **shape: int) -> list[int]:
    """Return the starts of the windows of n tokens, after a check that windows and batches have the requested sizes."""
    batches = list(spread_batches(np.arange(n, dtype=np.uint16), **shape))
    for rows in batches:
        assert torch.equal(rows, rows[:, :1] + torch.arange(shape["context"]))
        assert len(rows) <= shape["batch"]
    return [int(row[0]) for rows in batches for row in rows]


def test_spread_over_the_whole_stream():
    # 105 tokens have 10 windows of 10; 50 and 35 requested tokens are 5 and 3 of them
    assert list_starts(105, context=10, batch=2, n_tokens=50) == [0, 20, 40, 60, 80]
    assert list_starts(105, context=10, batch=3, n_tokens=35) == [0, 30, 60]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 400), st.integers(0, 300))
def test_windows_do_not_overlap_and_number_as_requested_or_available(context, batch, n_tokens, more):
    n = context + more  # at least one window
    window_starts = list_starts(n, context=context, batch=batch, n_tokens=n_tokens)
    assert len(window_starts) == max(1, min(n_tokens // context, n // context))
    assert all(b - a >= context for a, b in itertools.pairwise(window_starts))
    assert window_starts[-1] + context <= n
