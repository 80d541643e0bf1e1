"""Absorption, hedging and splitting on constructed SAEs whose values are known."""

import numpy as np
import pytest
import torch

from crux.config.errors import UserError
from crux.sae.reading.absorption import NO_LATENT, match_features, measure_absorption, measure_hedging
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.splitting import describe_splitting, measure_splitting

DIRECTIONS = np.eye(4)[:3]  # parent, child, another feature
PAIRS = [(1, 0)]


def draw_present(n: int = 4000) -> np.ndarray:
    rng = np.random.default_rng(0)
    parent = rng.random(n) < 0.4
    return np.stack([parent, parent & (rng.random(n) < 0.5), rng.random(n) < 0.3], 1)


def test_no_absorption() -> None:
    present = draw_present()
    (found,) = measure_absorption(present, present, directions=DIRECTIONS, dictionary=DIRECTIONS, pairs=PAIRS)
    assert (found.absorbed, found.missed, found.missed_without_child) == (0, 0, 0)
    assert (found.child_latent, found.parent_latent) == (1, 0)
    assert found.cosine == 0
    assert found.n_tokens == present[:, 1].sum()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_known_share_is_absorbed(share: float) -> None:
    """The child's latent contains the parent; the parent's latent is silent on a share of the tokens with the child."""
    present = draw_present()
    on = np.nonzero(present[:, 1])[0]
    absorbed = on[: round(share * len(on))]
    fires = present.copy()
    fires[absorbed, 0] = False
    dictionary = np.stack([DIRECTIONS[0], DIRECTIONS[0] + DIRECTIONS[1], DIRECTIONS[2]])[[2, 0, 1]]
    (found,) = measure_absorption(
        present, fires[:, [2, 0, 1]], directions=DIRECTIONS, dictionary=dictionary, pairs=PAIRS
    )
    assert found.absorbed == pytest.approx(len(absorbed) / len(on))
    assert found.missed == 0
    assert (found.child_latent, found.parent_latent) == (2, 1)
    assert found.cosine == pytest.approx(0.5**0.5)


def test_a_parent_that_nothing_replaces_is_missed() -> None:
    present = draw_present()
    fires = present.copy()
    fires[:, 0] = False
    (found,) = measure_absorption(present, fires, directions=DIRECTIONS, dictionary=DIRECTIONS, pairs=PAIRS)
    assert (found.absorbed, found.missed, found.missed_without_child) == (0, 1, 1)
    # the child's latent contains the parent, but does not fire where the child is on
    dictionary = np.stack([DIRECTIONS[0], DIRECTIONS[0] + 2 * DIRECTIONS[1], DIRECTIONS[2]])
    fires[:, 1] = False
    (found,) = measure_absorption(present, fires, directions=DIRECTIONS, dictionary=dictionary, pairs=PAIRS)
    assert (found.absorbed, found.missed) == (0, 1)


def test_a_small_cosine_is_no_absorption() -> None:
    present = draw_present()
    fires = present.copy()
    fires[present[:, 1], 0] = False
    dictionary = DIRECTIONS + np.array([[0.0] * 4, [0.09, 0, 0, 0], [0.0] * 4])
    (found,) = measure_absorption(present, fires, directions=DIRECTIONS, dictionary=dictionary, pairs=PAIRS)
    assert (found.absorbed, found.missed) == (0, 1)
    (found,) = measure_absorption(
        present, fires, directions=DIRECTIONS, dictionary=dictionary, pairs=PAIRS, min_cosine=0.05
    )
    assert (found.absorbed, found.missed) == (1, 0)


def test_features_without_a_latent_and_pairs_that_are_none() -> None:
    present = draw_present()
    assert match_features(DIRECTIONS, DIRECTIONS[1:]).tolist() == [NO_LATENT, 0, 1]
    (found,) = measure_absorption(
        present, present[:, 1:], directions=DIRECTIONS, dictionary=DIRECTIONS[1:], pairs=PAIRS
    )
    assert (found.parent_latent, found.missed) == (NO_LATENT, 1)
    with pytest.raises(UserError, match="feature 2 is on without feature 0"):
        measure_absorption(present, present, directions=DIRECTIONS, dictionary=DIRECTIONS, pairs=[(2, 0)])
    present[:, 1] = False
    with pytest.raises(UserError, match="feature 1 is never on"):
        measure_absorption(present, present, directions=DIRECTIONS, dictionary=DIRECTIONS, pairs=PAIRS)


def test_hedging_is_the_share_of_a_correlated_feature() -> None:
    rng = np.random.default_rng(0)
    present = draw_present()
    magnitudes = present * (0.5 + rng.random(present.shape))
    pure = measure_hedging(magnitudes, directions=DIRECTIONS, dictionary=DIRECTIONS, min_correlation=0.2)
    assert [(h.feature, h.cosine, h.other_cosine) for h in pure] == [(0, 1, 0), (1, 1, 0), (2, 1, 0)]
    assert [h.other for h in pure] == [1, 0, -1]  # the third feature is correlated with none
    mixed = np.array([[1.0, 0.5, 0, 0], [0, 0, 1, 0.5]])
    found = measure_hedging(magnitudes, directions=DIRECTIONS, dictionary=mixed, min_correlation=0.2)
    assert found[0].feature == 0
    assert found[0].other_cosine == pytest.approx(0.5 / 1.25**0.5)
    assert (found[1].other, found[1].other_cosine) == (-1, 0)
    oblique = np.array([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])  # true directions that are alike are no hedging
    found = measure_hedging(magnitudes, directions=oblique, dictionary=oblique, min_correlation=0.2)
    assert [h.other_cosine for h in found] == pytest.approx([0, 0, 0])


def make_codes(fires: np.ndarray) -> SparseCodes:
    indptr = np.concatenate([[0], np.cumsum(fires.sum(1))])
    return SparseCodes(indptr, np.nonzero(fires)[1].astype(np.int32), np.ones(fires.sum(), np.float32), fires.shape[1])


def test_a_split_latent_has_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crux.sae.reading.splitting.TOKENS", 700)
    rng = np.random.default_rng(0)
    narrow = rng.random((4000, 2)) < 0.3
    first = rng.random(4000) < 0.5
    noise = rng.random(4000) < 0.01
    wide = np.stack(
        [narrow[:, 0] & first, (narrow[:, 0] & ~first) | noise, narrow[:, 1], rng.random(4000) < 0.3, noise & False], 1
    )
    eye = torch.eye(3)
    wide_dictionary = torch.stack([eye[0] + 0.1 * eye[2], eye[0] - 0.1 * eye[2], eye[1], eye[1] + eye[2], eye[0]])
    found = measure_splitting(
        make_codes(narrow), make_codes(wide), narrow_dictionary=eye[:2], wide_dictionary=wide_dictionary
    )
    assert found.parent.tolist() == [0, 0, 1, 1, 0]
    expected = [(wide[:, i] & narrow[:, p]).sum() / wide[:, i].sum() for i, p in enumerate([0, 0, 1, 1])]
    np.testing.assert_allclose(found.coverage[:4], expected)
    assert np.isnan(found.coverage[4])
    assert found.coverage[3] == pytest.approx(found.chance[3], abs=0.05)  # an unrelated latent
    assert found.children.tolist() == [2, 1]
    columns, shares = describe_splitting(
        make_codes(narrow), make_codes(wide), dictionary=eye[:2], other_dictionary=wide_dictionary
    )
    assert columns["children"].tolist() == [2, 1]
    assert columns["parent_coverage"].tolist() == pytest.approx(
        [(wide[:, 0] | wide[:, 1])[narrow[:, 0]].mean() / 2, 1], abs=0.05
    )  # the fifth wide latent has the first one's direction but never fires; the third one is the second one
    assert columns["parent_density"].tolist()[1] == pytest.approx(narrow[:, 1].mean())
    assert shares == {"split_share": 0.5, "child_share": 0.5}
    with pytest.raises(UserError, match="4,000 and 10 tokens"):
        measure_splitting(
            make_codes(narrow), make_codes(wide[:10]), narrow_dictionary=eye[:2], wide_dictionary=wide_dictionary
        )
    with pytest.raises(UserError, match="no latent of the narrow SAE fires"):
        measure_splitting(
            make_codes(narrow & False), make_codes(wide), narrow_dictionary=eye[:2], wide_dictionary=wide_dictionary
        )
