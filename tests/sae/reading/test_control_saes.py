"""SAEs as controls: untrained, with a frozen decoder, and matched in density."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from crux.sae.reading import control_saes
from crux.sae.reading.control_saes import make_sae_control, make_untrained_sae, train_frozen_decoder_sae
from crux.sae.reading.density_matching import match_densities
from crux.sae.reading.directions import measure_moments
from crux.sae.reading.harvest import Harvest, ReadText, find_text_begins
from crux.sae.reading.sparse_codes import SparseCodes
from tests.support.architectures import ARCHITECTURES, make_arguments, perturb_sae
from tests.support.small_saes import make_random_sae

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((960, 8)) * np.linspace(1, 3, 8) + 5).astype(np.float32)
X.setflags(write=False)  # as a memory-mapped file
MOMENTS = measure_moments(X)


def encode(sae: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    return sae.encode(torch.tensor(x)).c.detach().numpy()  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_untrained_sae_has_the_architecture_the_l0_and_no_weight_of_the_trained_one(name: str) -> None:
    sae = perturb_sae(ARCHITECTURES[name](make_arguments())).fold()
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    untrained = make_untrained_sae(sae, X, l0=4.0, mean=MOMENTS.mean, seed=0)
    assert type(untrained) is type(sae)
    assert all(torch.equal(value, before[key]) for key, value in sae.state_dict().items())
    other = make_untrained_sae(perturb_sae(sae), X, l0=4.0, mean=MOMENTS.mean, seed=0)
    codes = encode(untrained, X)
    np.testing.assert_array_equal(encode(other, X), codes)  # nothing of the trained weights is left
    assert (codes != 0).sum(1).mean() == pytest.approx(4.0, abs=0.02)
    fires = codes != 0
    pre = (X - MOMENTS.mean.astype(np.float32)) @ untrained.dictionary().detach().numpy().T
    # the k largest of each token, or all above one threshold
    assert (np.where(fires, pre, np.inf).min(1) >= np.where(fires, -np.inf, pre).max(1) - 1e-5).all()


def test_an_untrained_transcoder_reads_with_an_encoder_of_its_own() -> None:
    untrained = make_untrained_sae(
        make_random_sae(d_model=8, n_latents=24, d_out=3, seed=0), X, l0=2.0, mean=MOMENTS.mean, seed=0
    )
    assert untrained.W_enc.shape == (8, 24)
    assert (encode(untrained, X) != 0).sum(1).mean() == pytest.approx(2.0, abs=0.01)


def test_a_frozen_decoder_stays_random_while_its_sae_learns() -> None:
    """The activations are sums of the frozen directions themselves, so that the encoder can learn to find them."""
    options = {"n_latents": 16, "k": 2, "batch": 256, "lr": 1e-2, "seed": 4, "device": torch.device("cpu")}
    start = train_frozen_decoder_sae(X, moments=MOMENTS, steps=0, **options)
    directions = start.dictionary().detach().numpy()
    x = ((RNG.random((4000, 16)) < 0.1) * RNG.uniform(1, 2, (4000, 16)) @ directions).astype(np.float32)
    moments = measure_moments(x)
    errors = {}
    for steps in (0, 300):
        sae = train_frozen_decoder_sae(x, moments=moments, steps=steps, **options)
        np.testing.assert_allclose(sae.dictionary().detach().numpy(), directions, atol=1e-6)
        errors[steps] = float((sae(torch.from_numpy(x)).detach() - torch.from_numpy(x)).square().mean())
    assert errors[300] < 0.6 * errors[0]
    again = train_frozen_decoder_sae(x, moments=moments, steps=300, **options)
    np.testing.assert_array_equal(encode(sae, x), encode(again, x))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=7),
    st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any),
)
def test_matching_is_an_assignment_of_least_cost(wanted: list[int], available: list[int]) -> None:
    a, b = np.array(wanted, float), np.array(available, float)
    pairs = match_densities(a, b)
    repeats = -(-len(a) // int((b > 0).sum()))
    assert np.bincount(pairs).max() <= repeats
    assert (b[pairs] > 0).all()
    columns = np.repeat(b[b > 0], repeats)
    cost = np.abs(np.log(a[:, None] / columns))
    best = cost[linear_sum_assignment(cost)].sum()
    np.testing.assert_allclose(np.abs(np.log(a / b[pairs])).sum(), best, atol=1e-9)


def test_matching_needs_densities() -> None:
    assert match_densities(np.zeros(0), np.ones(3)).tolist() == []
    with pytest.raises(ValueError, match="above 0"):
        match_densities(np.ones(2), np.zeros(3))
    with pytest.raises(ValueError, match="above 0"):
        match_densities(np.array([0.0, 1]), np.ones(3))


@pytest.mark.parametrize("density_batches", [10, 4])
def test_a_control_sae_is_lowered_to_the_densities_of_the_latents(
    density_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_saes, "DENSITY_BATCHES", density_batches)
    windows = RNG.integers(0, 11, (120, 8))
    dense = RNG.random((960, 5)) < [0.3, 0.02, 0.2, 0.001, 0.05]
    tokens, latents = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(dense.sum(1))])
    codes = SparseCodes(indptr, latents.astype(np.int32), np.ones(len(tokens), np.float32), 5)
    text = ReadText(windows, find_text_begins(windows, None), codes, X)
    half = ReadText(windows[:60], text.begins[:480], codes.tokens(0, 480), X[:480])
    sae = make_random_sae(d_model=8, n_latents=30, seed=2)
    with torch.no_grad():
        sae.b_enc.sub_(torch.linspace(-1, 8, 30))  # densities from 0 to 1
    control = make_sae_control("untrained", sae, Harvest(text, half, None, Path()), np.array([0, 2, 4]), batch=100)
    assert control.name == "untrained"
    theirs = encode(sae, X)
    firings = (theirs != 0).sum(0)
    some = (
        np.concatenate([theirs[first : first + 100] for first in (0, 286, 573, 860)])
        if density_batches == 4
        else theirs
    )
    wanted = codes.firings()[[0, 2, 4]]
    pairs = match_densities(wanted / 960, (some != 0).mean(0))  # by the densities on the batches that are counted
    assert (firings[pairs] > wanted).any()  # otherwise nothing is lowered
    np.testing.assert_array_equal(control.fit.firings(), np.minimum(wanted, firings[pairs]))
    for j, latent in enumerate(pairs):
        c = theirs[:, latent]
        theta = np.sort(c)[::-1][wanted[j]] if firings[latent] > wanted[j] else 0
        np.testing.assert_allclose(control.fit.matrix().toarray()[:, j], np.maximum(0, c - theta), atol=1e-6)
        np.testing.assert_allclose(control.held_out.matrix().toarray()[:, j], np.maximum(0, c - theta)[:480], atol=1e-6)
