"""Samplers: their moves equal the formulas, and their estimates agree with predictions."""

import math

import pytest
import torch
from torch import Tensor

from crux.llc.noise import Noise
from crux.llc.samplers.hmc import HMC, MALA
from crux.llc.samplers.interface import Posterior, Sampler
from crux.llc.samplers.rmsprop_sgld import RMSPropSGLD
from crux.llc.samplers.sgld import SGLD
from tests.support.quadratic_losses import EIGENVALUES, estimate, quadratic, values

SAMPLERS = [SGLD(), RMSPropSGLD(decay=0.99, floor=0.1), MALA, HMC(leapfrogs=3)]


def make_posterior(w: Tensor) -> Posterior:
    """Return the posterior of the quadratic loss around 0 for two chains with different nβ and γ."""
    a = values(*EIGENVALUES)

    def loss(w: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return quadratic({"w": w}, None), a * w

    return Posterior(torch.zeros_like(w), values(100.0, 1000.0), values(1.0, 30.0), loss)


def make_random_state() -> tuple[Tensor, Posterior, Tensor, Noise]:
    """Return random w for two chains, their posterior, ε and noise."""
    w = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    return w, make_posterior(w), values(1e-3, 2e-4), Noise([3, 4], n_chains=1, n=5, like=w)


def test_one_step_of_sgld() -> None:
    w, posterior, eps, noise = make_random_state()
    moved = SGLD().step(SGLD().start(w, posterior), 7, posterior=posterior, size=eps, noise=noise)
    for row in range(2):
        drift = posterior.nbeta[row] * values(*EIGENVALUES) * w[row] + posterior.gamma[row] * w[row]
        expected = w[row] - eps[row] / 2 * drift + eps[row].sqrt() * noise.normal(7)[row]
        torch.testing.assert_close(moved.w[row], expected)


def test_two_steps_of_rmsprop_sgld() -> None:
    w, posterior, eps, noise = make_random_state()
    sampler = RMSPropSGLD(decay=0.9, floor=0.1)
    state = sampler.start(w, posterior)
    V = torch.ones_like(w)
    for step in (1, 2):
        g = values(*EIGENVALUES) * w
        V = 0.9 * V + 0.1 * g**2
        G = 1 / ((V / (1 - 0.9**step)).sqrt() + 0.1)
        drift = posterior.nbeta[:, None] * g + posterior.gamma[:, None] * w
        w = w - eps[:, None] / 2 * G * drift + (eps[:, None] * G).sqrt() * noise.normal(step)
        state = sampler.step(state, step, posterior=posterior, size=eps, noise=noise)
        torch.testing.assert_close(state.w, w)


def test_hmc_with_one_leapfrog_step_is_mala() -> None:
    """The acceptance probability is min(1, p(w') q(w | w') / p(w) q(w' | w)) with q(· | w) = N(w − ε/2 ∇U, ε)."""
    w, posterior, eps, noise = make_random_state()
    eps = eps * 30  # so that some moves are rejected
    _, gradient = posterior.loss_and_gradient(w, 0)
    mean = w - eps[:, None] / 2 * posterior.energy_gradient(w, gradient)
    proposed = mean + eps.sqrt()[:, None] * noise.normal(1)
    loss, gradient = posterior.loss_and_gradient(proposed, 0)
    back = proposed - eps[:, None] / 2 * posterior.energy_gradient(proposed, gradient)
    log_q = ((proposed - mean).square().sum(1) - (w - back).square().sum(1)) / (2 * eps)
    log_p = posterior.energy(w, posterior.loss_and_gradient(w, 0)[0]) - posterior.energy(proposed, loss)
    probability = (log_p + log_q).exp().clamp(max=1)
    assert bool((probability < 0.99).any())
    moved = MALA.step(MALA.start(w, posterior), 1, posterior=posterior, size=eps, noise=noise)
    torch.testing.assert_close(moved.acceptance, probability)
    accepted = noise.uniform(1) < probability
    torch.testing.assert_close(moved.w, torch.where(accepted[:, None], proposed, w))


def test_rejected_move_changes_nothing() -> None:
    w, posterior, _, noise = make_random_state()
    start = MALA.start(w, posterior)
    stayed = MALA.step(start, 1, posterior=posterior, size=values(1e6, 1e6), noise=noise)
    assert torch.equal(stayed.w, w)
    assert torch.equal(stayed.loss, start.loss)
    assert torch.equal(stayed.gradient, start.gradient)
    assert float(stayed.acceptance.max()) == 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_every_sampler_estimates_d_over_2(sampler: Sampler) -> None:
    """At the default step size, estimates are within three standard errors of their predictions."""
    gamma = values(30.0, 300.0, 300.0)
    llc = estimate(
        nbeta=values(1e3, 1e4, 1e3), gamma=gamma, sampler=sampler, n_chains=32, burn_in=1000, draws=500, every=4
    )
    assert bool((llc.r_hat < 1.05).all())
    errors = (llc.mean - llc.predicted).abs() / llc.standard_error
    assert float(errors.max()) < 3, (llc.mean, llc.predicted, llc.standard_error)
    assert bool((llc.standard_error < 0.1).all())
    assert not bool(llc.escaped.any())
    assert bool((llc.acceptance > 0.8).all())
    assert (float(llc.acceptance.max()) < 1) == sampler.corrected  # the others accept every move


def test_periodic_trajectories_mix() -> None:
    """At ε h = 2, four unshortened leapfrog steps are a full period, and a chain would keep its energy for ever."""
    llc = estimate(
        loss=lambda p, batch: p["w"].square().sum(1) / 2,
        params={"w": torch.zeros(1, 2, dtype=torch.float64)},
        gamma=values(1e-9),
        step_size=values(2e-3),
        sampler=HMC(leapfrogs=4),
        n_chains=16,
        draws=500,
    )
    assert float((llc.mean - 1).abs()) < 3 * float(llc.standard_error) < 0.1
    assert float(llc.r_hat) < 1.02


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_chain_does_not_depend_on_the_batch(sampler: Sampler) -> None:
    both = estimate(nbeta=values(1e3, 1e4), seeds=[5, 6], n_chains=3, sampler=sampler, draws=20)
    for case, (nbeta, seed) in enumerate([(1e3, 5), (1e4, 6)]):
        single = estimate(nbeta=values(nbeta), seeds=[seed], n_chains=1, sampler=sampler, draws=20)
        torch.testing.assert_close(single.trace[0, 0], both.trace[case, 0], rtol=1e-12, atol=0)


def test_noise_is_normal_and_independent_between_chains_and_steps() -> None:
    noise = Noise([0, 1], n_chains=2, n=50_000, like=torch.zeros(1))
    first, second = noise.normal(1), noise.normal(2)
    assert noise.normal(1).dtype is torch.float32
    assert torch.equal(noise.normal(1), first)
    rows = torch.cat([first, second])
    # two steps of two cases with two chains: eight rows of 50,000 numbers, whose correlations scatter by 0.0045
    assert torch.allclose(torch.corrcoef(rows), torch.eye(8), atol=0.03)
    assert rows.std(1).sub(1).abs().max() < 0.02
    assert rows.abs().max() > 3.5
    assert math.isclose(float((rows**4).mean()), 3, rel_tol=0.05)  # the fourth moment of a normal distribution
    uniform = torch.stack([noise.uniform(step) for step in range(1000)])
    assert 0 <= float(uniform.min()) < float(uniform.max()) < 1
    assert not torch.equal(uniform[:, 0], noise.uniform_for_shortening(0))
