"""Integrated gradients of latents, error and bias against plain loops, with completeness and planted shares."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.site import Site
from crux.sae.reading import error_attribution
from crux.sae.reading.error_attribution import ErrorAttribution, attribute_to_error, mean_absolute_cosine
from tests.support.small_saes import make_random_sae, make_relu_sae, make_scaling_sae
from tests.support.toy_subject import ToySubject, make_random_toy

HOOK, LATER = "blocks.1.hook_resid_pre", "blocks.2.hook_resid_pre"
TOKENS = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(0))
MEAN = 0.3 * torch.randn(6, generator=torch.Generator().manual_seed(1))


def attribute(toy: ToySubject, sae: ReluSAE, *, write: str = HOOK, n_steps: int = 10) -> ErrorAttribution:
    batches = [TOKENS[:2], TOKENS[2:]]
    return attribute_to_error(
        toy, Site(HOOK, write, sae), batches=batches, mean_activation=MEAN, n_steps=n_steps, seed=0
    )


def next_token_log_probability(toy: ToySubject, value: Tensor, hook: str) -> Tensor:
    """Return the summed log-probability of the next tokens, given the activation at a hook point."""
    for block in toy.blocks[1:] if hook == HOOK else toy.blocks[2:]:
        value = block(value)
    log_q = (value @ toy.unembed.W_U.T).log_softmax(-1)[:, :-1]
    return -F.cross_entropy(log_q.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("write", [HOOK, LATER])
@pytest.mark.parametrize("block", [2**24, 40])
def test_contributions_are_those_of_a_plain_loop(write: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_attribution, "BLOCK", block)
    toy, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=9, seed=0)
    found = attribute(toy, sae, write=write)
    activations = toy.clean(TOKENS, capture=[HOOK, LATER]).activations
    x, codes = activations[write], sae.encode(activations[HOOK].flatten(0, 1)).c.view(5, 6, 9).detach()
    gradient = torch.zeros_like(x)
    for step in range(10):
        value = (MEAN + (step + 0.5) / 10 * (x - MEAN)).requires_grad_()
        gradient += torch.autograd.grad(next_token_log_probability(toy, value, write), value)[0] / 10
    n, directions = 5 * 5, sae.dictionary().detach()
    latents = np.zeros(9)
    error = error_absolute = absolute = bias = noise = 0.0
    for b in range(5):
        for t in range(6):
            for i in range(9):
                contribution = float(codes[b, t, i] * (directions[i] @ gradient[b, t]))
                latents[i] += contribution / n
                absolute += abs(contribution)
            residual = x[b, t] - (codes[b, t] @ directions + sae.b_dec.detach())
            error += float(gradient[b, t] @ residual) / n
            error_absolute += abs(float(gradient[b, t] @ residual))
            noise += float(gradient[b, t].norm() * residual.norm()) * mean_absolute_cosine(6)
            bias += float(gradient[b, t] @ (sae.b_dec.detach() - MEAN)) / n
    np.testing.assert_allclose(found.latents, latents, rtol=1e-3, atol=1e-5)
    assert found.error == pytest.approx(error, rel=1e-3, abs=1e-5)
    assert found.bias == pytest.approx(bias, rel=1e-3, abs=1e-5)
    assert found.error_share.everywhere == pytest.approx(error_absolute / (error_absolute + absolute), rel=1e-4)
    assert found.error_share.noise == pytest.approx(noise / (noise + absolute), rel=1e-4)
    assert found.signed_share == pytest.approx(error / (error + bias + latents.sum()), rel=1e-2)
    gain = next_token_log_probability(toy, x, write) - next_token_log_probability(toy, MEAN.expand_as(x), write)
    assert found.gain == pytest.approx(float(gain) / n, rel=1e-4)


def test_contributions_add_up_to_the_gain_as_the_steps_get_smaller() -> None:
    toy, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=9, seed=0)
    ten, many = (attribute(toy, sae, n_steps=n) for n in (10, 200))
    assert ten.completeness < 0.05
    assert many.completeness < 1e-3
    assert many.completeness < ten.completeness
    assert many.latents.sum() + many.error + many.bias == pytest.approx(many.gain, rel=1e-3)


def test_an_sae_without_error_and_one_without_latents() -> None:
    toy = make_random_toy(seed=0)
    perfect = attribute(toy, make_scaling_sae(1.0, d_model=6))
    assert perfect.error == pytest.approx(0, abs=1e-6)
    assert perfect.error_share.everywhere == pytest.approx(0, abs=1e-6)
    assert perfect.latents.sum() + perfect.bias == pytest.approx(perfect.gain, rel=0.05)
    dead = make_relu_sae(torch.zeros(6, 3), -torch.ones(3), torch.eye(3, 6), MEAN)
    nothing = attribute(toy, dead)
    assert nothing.error_share.everywhere == nothing.error_share.pos0 == nothing.first_order_share.rest == 1
    assert nothing.signed_share == pytest.approx(1)
    assert nothing.bias == pytest.approx(0, abs=1e-6)
    assert nothing.error == pytest.approx(nothing.gain, rel=0.05)


def test_half_of_a_reconstruction_has_half_of_the_contributions() -> None:
    """With x̂ = x/2 and one latent per sign and dimension, |error| is at most the latents' sum, and its signed share is a half."""
    toy = make_random_toy(seed=0)
    found = attribute(toy, make_scaling_sae(0.5, d_model=6))
    assert found.error == pytest.approx(found.latents.sum(), rel=1e-3)
    assert found.error_share.everywhere is not None
    assert 0 < found.error_share.everywhere < 0.5  # |Σ| ≤ Σ|.|
    assert found.first_order_share.everywhere is not None
    assert 0 < found.first_order_share.everywhere < 0.5


def test_the_mean_absolute_cosine_is_that_of_random_directions() -> None:
    assert mean_absolute_cosine(1) == pytest.approx(1)
    assert mean_absolute_cosine(2) == pytest.approx(2 / math.pi)
    assert mean_absolute_cosine(3) == pytest.approx(0.5)
    directions = F.normalize(torch.randn(100_000, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert mean_absolute_cosine(7) == pytest.approx(float(directions[:, 0].abs().mean()), rel=0.01)


def test_the_same_call_gives_the_same_numbers_and_zero_steps_are_an_error() -> None:
    toy, sae = make_random_toy(seed=0), make_random_sae(d_model=6, n_latents=9, seed=0)
    first, second = attribute(toy, sae), attribute(toy, sae)
    np.testing.assert_array_equal(first.latents, second.latents)
    assert first._replace(latents=second.latents) == second
    with pytest.raises(UserError, match="n_steps=0"):
        attribute(toy, sae, n_steps=0)
