"""Noise with the norm of an SAE's error: equal norms at every token, and the directions that each kind promises."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.sae.evaluation.token_moments import TokenMoments
from crux.sae.reading.residual_noise import NOISE_KINDS, ErrorNoise, Noise, NoiseKind

BATCH, POS, D = 6, 40, 5


def draw_batch() -> tuple[Tensor, Tensor]:
    """Return activations whose position 0 is massive, and errors of very different norms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, POS, D, generator=generator)
    x[:, 0] *= 1000
    error = torch.randn(BATCH, POS, D, generator=generator) * torch.tensor([5.0, 1, 1, 0.2, 0.01])
    return x, error * torch.logspace(-3, 2, POS)[:, None]


def make_noise(x: Tensor, error: Tensor) -> ErrorNoise:
    covariances = []
    for values in (error, x):
        moments = TokenMoments()
        moments.add(values[:, 1:].flatten(0, 1))
        covariances.append(moments.covariance)
    return ErrorNoise.from_moments(covariances[0], covariances[1], torch.device("cpu"))


def draw(kind: NoiseKind, x: Tensor, error: Tensor, seed: int = 0) -> Noise:
    return make_noise(x, error).draw(kind, x=x, error=error, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_norms_are_equal_at_every_token(kind: NoiseKind) -> None:
    x, error = draw_batch()
    noise = draw(kind, x, error)
    relative = noise.values.norm(dim=-1) / error.norm(dim=-1)
    assert (relative - 1).abs().max() < 1e-5
    assert noise.n_replaced == 0
    assert not torch.allclose(noise.values, error, rtol=0.1)
    torch.testing.assert_close(draw(kind, x, error).values, noise.values, rtol=0, atol=0)
    assert not torch.equal(draw(kind, x, error, seed=1).values, noise.values)


def test_permuted_errors_are_those_of_other_tokens_of_the_same_kind_of_position() -> None:
    x, error = draw_batch()
    cosines = (
        F.normalize(draw("permuted", x, error).values, dim=-1).flatten(0, 1)
        @ F.normalize(error, dim=-1).flatten(0, 1).T
    )
    best, partner = cosines.max(1)
    assert best.min() > 1 - 1e-5
    own = torch.arange(BATCH * POS)
    assert (partner != own).all()
    assert sorted(partner.tolist()) == own.tolist()
    assert torch.equal(partner % POS == 0, own % POS == 0)


def test_steps_towards_other_tokens_lead_to_tokens_after_position_0() -> None:
    x, error = draw_batch()
    step = F.normalize(draw("towards_other", x, error).values, dim=-1).flatten(0, 1)
    flat = x.flatten(0, 1)
    to_others = F.normalize(flat[None] - flat[:, None], dim=-1)  # from, to
    best, partner = torch.einsum("td,tsd->ts", step, to_others).max(1)
    assert best.min() > 1 - 1e-5
    after = torch.arange(BATCH * POS) % POS != 0
    assert (partner[after] != torch.arange(BATCH * POS)[after]).all()
    assert (partner[after] % POS != 0).all()
    # from a massive activation all ordinary tokens lie in nearly the same direction: towards zero
    assert F.cosine_similarity(step[~after], -flat[~after]).min() > 0.99


def test_shaped_noise_has_the_directions_of_its_covariance() -> None:
    axis = torch.tensor([0.6, 0.8, 0, 0, 0], dtype=torch.float64)
    noise = ErrorNoise.from_moments(torch.outer(axis, axis), torch.eye(D, dtype=torch.float64), torch.device("cpu"))
    x, error = draw_batch()
    shaped = noise.draw("error_covariance", x=x, error=error, generator=torch.Generator().manual_seed(0)).values
    torch.testing.assert_close((shaped @ axis.float()).abs(), error.norm(dim=-1), rtol=1e-4, atol=1e-6)
    ones = torch.ones(100, 200, D)
    isotropic = noise.draw(
        "activation_covariance", x=ones, error=ones, generator=torch.Generator().manual_seed(0)
    ).values
    second_moment = torch.einsum("bpd,bpe->de", isotropic, isotropic) / 20_000
    torch.testing.assert_close(second_moment, torch.eye(D), atol=0.03, rtol=0)


def test_a_token_without_a_direction_gets_an_isotropic_one() -> None:
    x, error = draw_batch()
    noise = make_noise(x, error)
    error[0, 3] = 0  # its own norm is 0; the token that gets its direction has a norm
    found = noise.draw("permuted", x=x, error=error, generator=torch.Generator().manual_seed(0))
    assert found.n_replaced == 1
    torch.testing.assert_close(found.values.norm(dim=-1), error.norm(dim=-1), rtol=1e-5, atol=0)
    alike = torch.ones_like(x)
    assert noise.draw("towards_other", x=alike, error=error, generator=torch.Generator()).n_replaced == BATCH * POS - 1
