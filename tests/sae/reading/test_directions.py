"""Control directions: their moments, their distributions, and that a seed fixes them."""

import numpy as np
import pytest

from crux.config.errors import UserError
from crux.sae.reading import directions
from crux.sae.reading.directions import DIRECTION_KINDS, DirectionKind, draw_directions, measure_moments

RNG = np.random.default_rng(0)
SHAPE = RNG.standard_normal((5, 5)) * [[10, 3, 1, 0.5, 0.1]]
X = (RNG.standard_normal((4_000, 5)) @ SHAPE.T + 100).astype(np.float32)
MOMENTS = measure_moments(X)


def draw(kind: DirectionKind, n: int, seed: int = 0) -> np.ndarray:
    return draw_directions(kind, n, moments=MOMENTS, x=X, seed=seed)


def test_moments_are_those_of_numpy_for_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "BLOCK", 7 * 5)
    moments = measure_moments(X)
    exact = X.astype(np.float64)
    assert moments.n == 4_000
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(exact.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(moments.mean_norm, np.linalg.norm(exact, axis=1).mean(), rtol=1e-12)


@pytest.mark.parametrize("kind", DIRECTION_KINDS)
def test_directions_are_unit_vectors_that_a_seed_fixes(kind: DirectionKind) -> None:
    drawn = draw(kind, 12)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(drawn, draw(kind, 12))
    assert np.array_equal(drawn, draw(kind, 12, seed=1)) == (kind in ("pca", "coordinate"))


def test_whitened_directions_are_isotropic_after_whitening_and_covariance_shaped_ones_have_the_covariance() -> None:
    """The mean square along each principal component is compared with that of noise that is shaped in the eigenbasis."""
    variances, components = directions.find_principal_components(MOMENTS)
    np.testing.assert_allclose(
        components @ MOMENTS.covariance @ components.T, np.diag(variances), atol=1e-6 * variances[0]
    )
    z = np.random.default_rng(1).standard_normal((200_000, 5))
    powers: dict[DirectionKind, float] = {"whitened": -0.5, "covariance": 0.5, "isotropic": 0.0}
    for kind, power in powers.items():
        expected = z * variances**power
        expected = (expected / np.linalg.norm(expected, axis=1, keepdims=True)) ** 2
        squares = (draw(kind, 200_000) @ components.T) ** 2
        np.testing.assert_allclose(squares.mean(0), expected.mean(0), rtol=0.03, atol=1e-6)


def test_principal_components_and_coordinates_come_with_both_signs_and_are_repeated() -> None:
    components = directions.find_principal_components(MOMENTS)[1]
    assert (np.diff(((X - MOMENTS.mean) @ components.T).var(0)) < 0).all()
    assert (components[np.arange(5), np.abs(components).argmax(1)] > 0).all()
    np.testing.assert_allclose(draw("pca", 12), np.concatenate([components, -components, components[:2]]), rtol=1e-12)
    np.testing.assert_array_equal(draw("coordinate", 11), np.concatenate([np.eye(5), -np.eye(5), np.eye(5)[:1]]))


def test_examples_are_tokens_of_the_text() -> None:
    centred = X - MOMENTS.mean
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert (draw("example", 8) @ units.T).max(1) == pytest.approx(1, abs=1e-9)
    few = X[:3].astype(np.float64)
    pairs = np.stack([few[s] - few[t] for s in range(3) for t in range(3) if s != t])
    pairs /= np.linalg.norm(pairs, axis=1, keepdims=True)
    drawn = draw_directions("example_difference", 50, moments=measure_moments(X[:3]), x=X[:3], seed=0)
    assert (drawn @ pairs.T).max(1) == pytest.approx(1, abs=1e-9)  # never a token with itself
    assert set((drawn @ pairs.T).argmax(1)) == set(range(6))


def test_whitening_leaves_out_what_does_not_vary() -> None:
    flat = np.concatenate([X, np.ones((4_000, 1), np.float32)], axis=1)
    drawn = draw_directions("whitened", 10, moments=measure_moments(flat), x=flat, seed=0)
    assert np.abs(drawn[:, 5]).max() < 1e-6
    same = np.ones((10, 3), np.float32)
    with pytest.raises(UserError, match="do not vary"):
        draw_directions("isotropic", 1, moments=measure_moments(same), x=same, seed=0)
    with pytest.raises(UserError, match="at least 2 tokens"):
        measure_moments(X[:1])
