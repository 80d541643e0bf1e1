"""Contexts of latents: the strongest, those of groups by rank, and random ones, without duplicates."""

import numpy as np
import pytest
import scipy.sparse

from crux.sae.figures.features_page_data import PageContexts
from crux.sae.reading import contexts as contexts_module
from crux.sae.reading.contexts import ContextCounts, count_codes, find_contexts, hash_grams, quantise
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.sparse_codes import SparseCodes

COUNTS = ContextCounts(top=4, quantiles=5, per_quantile=2, random=3)


def make_text(windows: np.ndarray, codes: np.ndarray) -> ReadText:
    """Return a text with codes given as tokens × latents."""
    sparse = scipy.sparse.csr_matrix(codes.astype(np.float32))
    found = SparseCodes(sparse.indptr.astype(np.int64), sparse.indices.astype(np.int32), sparse.data, codes.shape[1])
    return ReadText(windows.astype(np.int64), find_text_begins(windows, None), found, None)


def make_random_text(*, seed: int = 0, n: int = 300, context: int = 16, latents: int = 6) -> ReadText:
    rng = np.random.default_rng(seed)
    windows = rng.integers(0, 3, (n, context))  # so few tokens that sequences repeat
    codes = rng.gamma(1, 1, (windows.size, latents)) * (
        rng.random((windows.size, latents)) < [0.5, 0.1, 0.02, 0.003, 0, 1]
    )
    return make_text(windows, codes)


def peaks_of(found: PageContexts, row: int, group: int) -> list[int]:
    """Return the numbers of the tokens that the contexts of one group were chosen for."""
    places = np.arange(found.offsets[row], found.offsets[row + 1])
    places = places[found.groups[places] == group]
    return (found.starts + found.peaks)[places].tolist()


def codes_of(found: PageContexts, context: int) -> np.ndarray:
    ends = np.cumsum(found.lengths)
    return found.codes[ends[context] - found.lengths[context] : ends[context]]


def gram(text: ReadText, token: int) -> tuple[int, ...]:
    first = token - token % text.windows.shape[1]
    return tuple(text.tokens[max(first, token - 7) : token + 1].tolist())


def test_the_strongest_contexts_equal_a_plain_search() -> None:
    text = make_random_text()
    found = find_contexts(text, np.arange(6), counts=COUNTS)
    dense = text.codes.matrix().toarray()
    for latent in range(6):
        by_window: dict[int, int] = {}
        ranked = sorted(np.flatnonzero(dense[:, latent]).tolist(), key=lambda t: (-dense[t, latent], t))
        for token in ranked:
            by_window.setdefault(token // 16, token)
        by_gram: dict[tuple[int, ...], int] = {}
        for token in by_window.values():
            by_gram.setdefault(gram(text, token), token)
        assert peaks_of(found, latent, 0) == list(by_gram.values())[:4]
    assert found.maxima == pytest.approx(dense.max(0))


def test_groups_are_of_equal_size_by_rank_among_the_firing_tokens() -> None:
    text = make_random_text()
    many = find_contexts(text, np.arange(6), counts=ContextCounts(1, 5, 500, 0))
    dense = text.codes.matrix().toarray()
    for latent in (0, 1, 5):
        firing = np.sort(dense[:, latent][dense[:, latent] > 0])[::-1]
        for group in range(5):
            codes = dense[peaks_of(many, latent, group + 1), latent]
            bounds = firing[len(firing) * group // 5], firing[len(firing) * (group + 1) // 5 - 1]
            assert bounds[0] >= codes.max() > codes.min() >= bounds[1]
            assert np.all(np.diff(codes) <= 0)  # shown by decreasing code
            assert len(codes) > 10


def test_within_a_group_no_window_and_no_sequence_is_there_twice() -> None:
    text = make_random_text()
    found = find_contexts(text, np.arange(6), counts=ContextCounts(50, 5, 20, 50))
    for latent in range(6):
        for group in range(7):
            peaks = peaks_of(found, latent, group)
            assert len({peak // 16 for peak in peaks}) == len(peaks)
            assert len({gram(text, peak) for peak in peaks}) == len(peaks)


def test_random_contexts_are_drawn_from_all_firing_tokens() -> None:
    """Over many seeds, every fifth of the ranks is drawn about equally often."""
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 1000, (400, 8))
    text = make_text(windows, np.arange(1, 3201)[:, None].astype(float) * (rng.random((3200, 1)) < 0.3))
    firing = np.flatnonzero(text.codes.matrix().toarray()[:, 0])
    drawn = [
        p for seed in range(60) for p in peaks_of(find_contexts(text, np.array([0]), counts=COUNTS, seed=seed), 0, 6)
    ]
    counts = np.bincount(np.searchsorted(firing, drawn) * 5 // len(firing), minlength=5)
    assert counts.sum() == 180
    assert counts.min() > 180 / 5 * 0.55  # 36 expected, standard deviation 5.4


def test_codes_of_the_contexts_are_those_of_the_text() -> None:
    text = make_random_text()
    found = find_contexts(text, np.array([2, 0, 4]), counts=COUNTS, before=3, after=2)
    dense = text.codes.matrix().toarray()
    for row, latent in enumerate([2, 0, 4]):
        for i in range(found.offsets[row], found.offsets[row + 1]):
            start, length, peak = found.starts[i], found.lengths[i], found.starts[i] + found.peaks[i]
            window = peak - peak % 16
            assert start == max(window, peak - 3)
            assert start + length == min(window + 16, peak + 3)
            exact = dense[start : start + length, latent]
            shown = codes_of(found, i) / 255 * found.maxima[row]
            assert np.abs(shown - exact).max() <= found.maxima[row] / 255
            assert ((codes_of(found, i) > 0) == (exact > 0)).all()
    assert found.offsets[3] == found.offsets[2]  # latent 4 never fires
    assert found.maxima[2] == 0


def test_a_latent_that_fires_on_few_tokens_has_one_group() -> None:
    codes = np.zeros((32, 1))
    codes[[3, 20], 0] = [1.0, 2.0]
    text = make_text(np.arange(32).reshape(4, 8), codes)
    found = find_contexts(text, np.array([0]), counts=COUNTS)
    assert peaks_of(found, 0, 0) == [20, 3]
    assert found.offsets.tolist() == [0, 2]


def test_contexts_end_at_whole_characters() -> None:
    codes = np.zeros((16, 1))
    codes[5, 0] = 1.0
    text = make_text(np.arange(16).reshape(2, 8), codes)
    joined = np.zeros(16, bool)
    joined[[3, 4, 7]] = True  # 2, 3 and 4 are one character, 6 and 7 another
    found = find_contexts(text, np.array([0]), counts=COUNTS, joined=joined, before=1, after=1)
    assert (found.starts[0], found.lengths[0], found.peaks[0]) == (2, 6, 3)
    assert codes_of(found, 0).tolist() == [0, 0, 0, 255, 0, 0]


def test_other_latents_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    text = make_random_text()
    whole = find_contexts(text, np.arange(6), counts=COUNTS, seed=3)
    monkeypatch.setattr(contexts_module, "LATENTS_PER_BLOCK", 2)
    for a, b in zip(whole, find_contexts(text, np.arange(6), counts=COUNTS, seed=3), strict=True):
        np.testing.assert_array_equal(a, b)
    alone = find_contexts(text, np.array([1]), counts=COUNTS, seed=3)
    for group in range(7):
        assert peaks_of(alone, 0, group) == peaks_of(whole, 1, group)
    assert peaks_of(find_contexts(text, np.array([1]), counts=COUNTS, seed=4), 0, 6) != peaks_of(alone, 0, 6)


def test_no_latents_and_no_codes() -> None:
    text = make_text(np.zeros((2, 4), int), np.zeros((8, 3)))
    assert find_contexts(text, np.zeros(0, np.int64), counts=COUNTS).offsets.tolist() == [0]
    found = find_contexts(text, np.arange(3), counts=COUNTS)
    assert found.offsets.tolist() == [0, 0, 0, 0]
    assert count_codes(text, np.arange(3), bins=4).tolist() == [[0] * 4] * 3


def test_hashes_are_equal_where_the_last_tokens_are() -> None:
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 2, (40, 12))
    hashes = hash_grams(windows).reshape(windows.shape)
    grams = {}
    for row in range(40):
        for place in range(12):
            key = tuple(windows[row, max(0, place - 7) : place + 1].tolist())
            assert grams.setdefault(key, hashes[row, place]) == hashes[row, place]
    assert len(set(grams.values())) == len(grams)


def test_quantised_codes_by_hand() -> None:
    assert quantise(np.array([0, 1e-6, 1.0, 2.0, 4.0]), 4.0).tolist() == [0, 1, 64, 128, 255]


def test_histogram_by_hand() -> None:
    codes = np.array([[0.0, 0], [1.0, 0], [2.0, 0], [3.9, 5], [4.0, 0], [0.5, 0]])
    text = make_text(np.arange(6).reshape(2, 3), codes)
    assert count_codes(text, np.array([1, 0]), bins=4).tolist() == [[0, 0, 0, 1], [1, 1, 1, 2]]
