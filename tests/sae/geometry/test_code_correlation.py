"""Correlations of sparse codes: against numpy on the dense codes."""

import numpy as np
import pytest

from crux.config.errors import UserError
from crux.sae.geometry import code_correlation
from crux.sae.geometry.code_correlation import compare_codes, correlate_pairs, find_most_correlated, shift_tokens
from crux.sae.reading.sparse_codes import SparseCodes


def make_codes(dense: np.ndarray) -> SparseCodes:
    fires = dense != 0
    indptr = np.concatenate([[0], np.cumsum(fires.sum(1))])
    return SparseCodes(indptr, np.nonzero(fires)[1].astype(np.int32), dense[fires].astype(np.float32), dense.shape[1])


def draw_codes(seed: int, *, tokens: int = 200, latents: int = 9) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.maximum(generator.normal(-0.5, 1, (tokens, latents)), 0).astype(np.float32)


@pytest.fixture(params=["one block", "many blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many blocks":
        monkeypatch.setattr(code_correlation, "TOKENS_AT_ONCE", 33)
        monkeypatch.setattr(code_correlation, "PAIRS_AT_ONCE", 2)
        monkeypatch.setattr(code_correlation, "BLOCK_ENTRIES", 1)


@pytest.mark.usefixtures("_blocks")
def test_the_most_correlated_latent_is_that_of_numpy() -> None:
    a, b = draw_codes(0, latents=150), draw_codes(1, latents=70)
    b[:, 5] = 3 * a[:, 140] + 0.01 * b[:, 5]
    expected = np.corrcoef(a.T.astype(float), b.T.astype(float))[:150, 150:]
    to, back = find_most_correlated(make_codes(a), make_codes(b))
    assert to.correlations == pytest.approx(expected.max(1), abs=1e-9)
    assert (to.indices == expected.argmax(1)).all()
    assert back.correlations == pytest.approx(expected.max(0), abs=1e-9)
    assert (back.indices == expected.argmax(0)).all()
    assert to.indices[140] == 5
    assert back.indices[5] == 140
    rows, columns = np.array([140, 3, 7]), np.array([5, 5, 60])
    assert correlate_pairs(make_codes(a), make_codes(b), rows=rows, columns=columns) == pytest.approx(
        expected[rows, columns], abs=1e-9
    )


@pytest.mark.usefixtures("_blocks")
def test_within_one_sae_a_latent_is_not_its_own_partner() -> None:
    a = draw_codes(0)
    expected = np.corrcoef(a.T.astype(float)) - 3 * np.eye(9)
    found, same = find_most_correlated(make_codes(a))
    assert found.correlations == pytest.approx(expected.max(1), abs=1e-9)
    assert (found.indices == expected.argmax(1)).all()
    assert same.correlations == pytest.approx(found.correlations)


def test_latents_whose_codes_do_not_vary_have_no_correlation() -> None:
    a, b = draw_codes(0), draw_codes(1)
    a[:, 2], b[:, 3], b[:, 4] = 0, 0, 0.1  # dead, dead, and constant
    to, back = find_most_correlated(make_codes(a), make_codes(b))
    assert np.flatnonzero(np.isnan(to.correlations)).tolist() == [2]
    assert np.flatnonzero(np.isnan(back.correlations)).tolist() == [3, 4]
    assert to.indices[2] == back.indices[3] == -1
    assert not set(to.indices.tolist()) & {3, 4}
    assert np.isfinite(to.mean)
    pairs = correlate_pairs(make_codes(a), make_codes(b), rows=np.array([2, 0]), columns=np.array([0, 4]))
    assert np.isnan(pairs).all()


def test_shifted_codes_are_moved_as_a_whole() -> None:
    a = draw_codes(0)
    shifted = shift_tokens(make_codes(a), by=30)
    assert np.array_equal(shifted.matrix().toarray(), np.roll(a, 30, axis=0))
    assert shift_tokens(make_codes(a), by=200).n_tokens == 200
    to, _ = find_most_correlated(make_codes(a), shifted)
    assert to.mean < 0.3 < find_most_correlated(make_codes(a), make_codes(a))[0].mean


def test_the_same_codes_in_another_order_are_similar_and_moved_ones_are_not() -> None:
    a = draw_codes(0, tokens=2000)
    order = np.random.default_rng(2).permutation(9)
    found = compare_codes(make_codes(a), make_codes(a[:, order]), rows=order, columns=np.arange(9), context=8)
    assert (found.to, found.back, found.matched) == (pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert abs(found.chance_matched) < 0.03
    assert 0 < found.chance_to < 0.1
    assert 0 < found.chance_back < 0.1


def test_codes_of_other_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="on the same tokens only, not on 200 and 100"):
        find_most_correlated(make_codes(draw_codes(0)), make_codes(draw_codes(1, tokens=100)))
