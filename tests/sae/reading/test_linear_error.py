"""The linear part of an error and predictions of its norm, against scikit-learn and planted relations."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from crux.sae.evaluation.token_moments import TokenMoments
from crux.sae.reading.error_norm import PREDICTORS, TokenFacts, predict_error_norm, r_squared
from crux.sae.reading.linear_error import LinearErrorPart, fit_linear_map

N, D_IN, D_Y = 400, 6, 3


def test_the_linear_map_is_that_of_least_squares_with_a_bias() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(N, D_IN)) + 30
    y = x @ random.normal(size=(D_IN, D_Y)) + random.normal(size=(N, D_Y)) - 7
    moments = TokenMoments()
    for part in np.array_split(np.concatenate([x, y], 1), 5):
        moments.add(torch.from_numpy(part))
    found = fit_linear_map(moments.covariance, moments.mean, d_in=D_IN, targets=slice(D_IN, D_IN + D_Y))
    expected = LinearRegression().fit(x, y)
    np.testing.assert_allclose(found.W.numpy(), expected.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.predict(torch.from_numpy(x)).numpy(), expected.predict(x), rtol=1e-6)
    pooled = r_squared(y, expected.predict(x))
    assert pooled == pytest.approx(r2_score(y, expected.predict(x), multioutput="variance_weighted"))


def test_directions_without_variance_carry_no_coefficient() -> None:
    """Activations whose entries sum to zero, as those of processed weights, have a singular covariance."""
    x = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x -= x.mean(1, keepdim=True)
    moments = TokenMoments()
    moments.add(torch.cat([x, 2 * x[:, :1] + 1], 1))
    found = fit_linear_map(moments.covariance, moments.mean, d_in=D_IN, targets=slice(D_IN, D_IN + 1))
    assert found.W.abs().max() < 3
    torch.testing.assert_close(found.predict(x), (2 * x[:, :1] + 1).float())
    constant = fit_linear_map(
        torch.zeros(3, 3).double(), torch.tensor([1.0, 2, 5]).double(), d_in=2, targets=slice(2, 3)
    )
    assert constant.predict(torch.zeros(4, 2)).tolist() == [[5.0]] * 4


def test_position_0_has_its_mean() -> None:
    eye = fit_linear_map(torch.ones(4, 4).double() * 0, torch.zeros(4).double(), d_in=2, targets=slice(2, 4))
    part = LinearErrorPart(eye, torch.tensor([3.0, 4.0]))
    assert part.predict(torch.ones(1, 2, 2)).tolist() == [[[3.0, 4.0], [0.0, 0.0]]]


def make_facts(seed: int, *, kind: str, n: int = 3000) -> TokenFacts:
    """Return facts of which ‖e‖² depends on one thing only, with as much noise as signal."""
    random = np.random.default_rng(seed)
    token = random.integers(20, size=n).astype(np.int32)
    columns = {name: random.normal(size=n) for name in ("norm", "loss", "l0")}
    columns["token"] = (token - 9.5) / np.sqrt(399 / 12)  # variance 1
    target = 10 + columns[kind] + random.normal(size=n)
    return TokenFacts(target, columns["norm"], columns["loss"], columns["l0"], token)


@pytest.mark.parametrize("kind", ["norm", "loss", "l0", "token"])
def test_the_planted_predictor_explains_half_and_the_others_nothing(kind: str) -> None:
    fit, held_out = make_facts(0, kind=kind), make_facts(1, kind=kind)
    found = predict_error_norm(fit, held_out, from_activation=np.full(3000, held_out.squared_error.mean()))
    assert set(found) == set(PREDICTORS)
    for name, r2 in found.items():
        assert r2 == pytest.approx(0.5 if name in (kind, "together") else 0.0, abs=0.03), name


def test_a_tokens_mean_leaves_out_the_token_itself() -> None:
    """Every token of the fit occurs once: its own mean would be a perfect prediction there, and ruin the joint regression."""
    fit, held_out = make_facts(0, kind="norm"), make_facts(1, kind="norm")
    fit = fit._replace(token=np.arange(3000, dtype=np.int32))
    held_out = held_out._replace(token=np.arange(3000, 6000, dtype=np.int32))
    together = predict_error_norm(fit, held_out, from_activation=held_out.squared_error)["together"]
    assert together == pytest.approx(0.5, abs=0.03)


def test_what_does_not_vary_has_no_r2_and_fixed_l0_predicts_nothing() -> None:
    facts = make_facts(0, kind="norm")._replace(l0=np.full(3000, 32.0))
    assert predict_error_norm(facts, facts, from_activation=facts.squared_error)["l0"] == pytest.approx(0, abs=1e-9)
    constant = facts._replace(squared_error=np.ones(3000))
    assert predict_error_norm(facts, constant, from_activation=constant.squared_error) == dict.fromkeys(PREDICTORS)
    empty = TokenFacts._make(column[:0] for column in facts)
    assert predict_error_norm(empty, empty, from_activation=np.zeros(0)) == dict.fromkeys(PREDICTORS)
