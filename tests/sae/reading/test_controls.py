"""Control dictionaries: their codes, their densities, and that the null is one."""

from pathlib import Path

import numpy as np
import pytest

from crux.sae.reading import controls
from crux.sae.reading.controls import (
    choose_latents,
    encode_directions,
    find_threshold,
    make_direction_control,
    make_shifted_control,
    select_latents,
    shift_codes,
)
from crux.sae.reading.directions import DIRECTION_KINDS, draw_directions, measure_moments
from crux.sae.reading.harvest import Harvest, ReadText, find_text_begins
from crux.sae.reading.sparse_codes import SparseCodes

RNG = np.random.default_rng(0)


def make_codes(dense: np.ndarray) -> SparseCodes:
    tokens, latents = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(tokens, minlength=len(dense)))])
    return SparseCodes(indptr, latents.astype(np.int32), dense[tokens, latents].astype(np.float32), dense.shape[1])


def make_text(n_windows: int, *, context: int = 8, n_latents: int = 12, d: int = 5) -> ReadText:
    windows = RNG.integers(0, 11, (n_windows, context))
    densities = np.linspace(0.02, 0.4, n_latents)
    dense = RNG.gamma(2, 1, (windows.size, n_latents)) * (RNG.random((windows.size, n_latents)) < densities)
    x = (RNG.standard_normal((windows.size, d)) * np.arange(1, d + 1) + 20).astype(np.float32)
    x.setflags(write=False)  # as a memory-mapped file
    return ReadText(windows, find_text_begins(windows, None), make_codes(dense), x)


HARVEST = Harvest(make_text(60), make_text(20), None, Path())


@pytest.mark.parametrize("kind", DIRECTION_KINDS)
def test_a_control_latent_has_the_code_and_the_density_of_its_definition(
    kind: controls.DirectionKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of two directions and seven tokens; the reference computes one direction at a time in float64."""
    monkeypatch.setattr(controls, "BLOCK", 2 * 480)
    monkeypatch.setattr(controls, "ROWS", 7)
    latents = np.array([1, 4, 5, 9, 11])
    fit, held_out = HARVEST.fit, HARVEST.held_out
    assert fit.x is not None
    assert held_out.x is not None
    moments = measure_moments(fit.x)
    control = make_direction_control(kind, HARVEST, latents, moments=moments, seed=3)
    assert (control.name, control.latents.tolist()) == (kind, latents.tolist())
    np.testing.assert_array_equal(control.fit.firings(), fit.codes.firings()[latents])
    directions = draw_directions(kind, 5, moments=moments, x=fit.x, seed=3)
    for j, (u, latent) in enumerate(zip(directions, latents, strict=True)):
        projected = (fit.x.astype(np.float64) - moments.mean) @ u
        theta = np.sort(projected)[::-1][fit.codes.firings()[latent]]
        for codes, x in ((control.fit, fit.x), (control.held_out, held_out.x)):
            expected = np.maximum(0, (x.astype(np.float64) - moments.mean) @ u - theta)
            np.testing.assert_allclose(codes.matrix().toarray()[:, j], expected, atol=2e-5)
    replaced = control.harvest(HARVEST)
    np.testing.assert_array_equal(replaced.fit.windows, fit.windows)
    assert replaced.held_out.codes.n_latents == 5


def test_a_threshold_lets_as_many_values_pass_as_asked() -> None:
    values = np.array([3, 1, 2, 5, 4], np.float32)
    assert [int((values > find_threshold(values, n)).sum()) for n in range(7)] == [0, 1, 2, 3, 4, 5, 5]
    ties = np.array([1, 2, 2, 2, 0], np.float32)
    assert find_threshold(ties, 2) == 2  # fewer than two exceed it, since three are equal


def test_codes_of_no_direction_and_of_a_latent_that_fires_on_all_tokens() -> None:
    x = HARVEST.fit.x
    assert x is not None
    fit, _ = encode_directions(np.eye(5)[:2], firings=np.array([0, len(x)]), mean=np.zeros(5), fit=x, held_out=x)
    assert fit.firings().tolist() == [0, len(x)]
    empty, _ = encode_directions(np.zeros((0, 5)), firings=np.zeros(0, int), mean=np.zeros(5), fit=x, held_out=x)
    assert (empty.n_tokens, empty.n_latents) == (len(x), 0)


def test_chosen_latents_spread_over_the_densities() -> None:
    firings = np.array([5, 100, 0, 30, 40, 70, 20, 10])
    dense = np.array([np.arange(100) < n for n in firings], float).T
    held_out = make_codes(np.delete(dense, np.s_[50:], 0) * (np.arange(8) != 3))
    harvest = Harvest(
        HARVEST.fit._replace(codes=make_codes(dense)), HARVEST.held_out._replace(codes=held_out), None, Path()
    )
    # candidates by density: 7 (10), 6 (20), 4 (40), 5 (70), 1 (100); latent 3 is silent in the held-out text
    assert choose_latents(harvest, 2, min_fit=10, min_held_out=1).tolist() == [5, 6]
    assert choose_latents(harvest, 9, min_fit=10, min_held_out=1).tolist() == [1, 4, 5, 6, 7]
    assert choose_latents(harvest, 2, min_fit=1000, min_held_out=1).tolist() == []


def test_selected_and_shifted_codes() -> None:
    dense = HARVEST.fit.codes.matrix().toarray()
    selected = select_latents(HARVEST.fit.codes, np.array([0, 3, 11]))
    np.testing.assert_array_equal(selected.matrix().toarray(), dense[:, [0, 3, 11]])
    for by in (0, 1, 13, 480, 483):
        shifted = shift_codes(HARVEST.fit.codes, by=by)
        np.testing.assert_array_equal(shifted.matrix().toarray(), np.roll(dense, by, axis=0))


def test_the_null_moves_codes_to_other_positions_of_other_windows() -> None:
    control = make_shifted_control(HARVEST, np.array([2, 7]))
    assert control.name == "shifted"
    dense = HARVEST.fit.codes.matrix().toarray()[:, [2, 7]]
    np.testing.assert_array_equal(control.fit.matrix().toarray(), np.roll(dense, 30 * 8 + 4, axis=0))
    np.testing.assert_array_equal(control.fit.firings(), HARVEST.fit.codes.firings()[[2, 7]])
