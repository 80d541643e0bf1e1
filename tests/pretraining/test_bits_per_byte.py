"""Tests of bits per byte: every token is scored once, from enough earlier tokens, and sums equal those computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crux.pretraining.bits_per_byte import cut_windows, sum_nats, to_bits_per_byte
from tests.support.toy_subject import ToySubject, make_random_toy


@given(n=st.integers(2, 400), context=st.integers(2, 40), data=st.data())
def test_each_token_but_the_first_is_predicted_once_with_enough_context(
    n: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    ids, predicted = list(range(n)), []  # each id is its position, and so the number of tokens before it
    for window in cut_windows(ids, context=context, stride=stride):
        assert len(window.ids) <= context + 1
        for t in range(window.first, len(window.ids) - 1):
            token = window.ids[t + 1]
            predicted.append(token)
            # it is predicted from the t + 1 tokens before it in the window: at least as many as the model reads in both of two
            # consecutive windows (context - stride), or all tokens before it in the document if these are fewer
            assert t + 1 >= min(token, context - stride)
    assert predicted == ids[1:]


def test_uniform_predictions_cost_log_of_the_vocabulary_size_per_token() -> None:
    subject = ToySubject(embed=torch.randn(8, 4), blocks=[lambda h: h], W_U=torch.zeros(8, 4))
    nats = sum_nats(subject, [[1, 2, 3], [4] * 9], end_of_text=0, context=4, stride=2, batch=3)
    # 3 + 9 tokens: the first of each document is predicted too, from end_of_text
    assert nats == pytest.approx(12 * math.log(8))


def test_a_document_within_the_context_is_scored_in_one_pass() -> None:
    subject = make_random_toy(seed=0)
    ids = [3, 1, 4, 1, 5]
    end_of_text = 0
    final = subject.clean(torch.tensor([[end_of_text, *ids[:-1]]]), capture=()).final
    assert final is not None
    log_p = (final[0] @ subject.unembed.W_U.T).log_softmax(-1)
    by_hand = -sum(float(log_p[t, token]) for t, token in enumerate(ids))
    for batch in (1, 2):
        nats = sum_nats(subject, [ids, ids], end_of_text=end_of_text, context=8, stride=8, batch=batch)
        assert nats == pytest.approx(2 * by_hand, rel=1e-6)


def test_ten_bits_in_five_bytes_are_two_bits_per_byte() -> None:
    assert to_bits_per_byte(math.log(2) * 10, 5) == pytest.approx(2.0)
