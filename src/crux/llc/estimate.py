"""The local learning coefficient: λ̂ = nβ (E_w[L(w)] − L(w*)), w from exp(−nβ L(w) − γ/2 ‖w − w*‖²) (Lau et al. 2308.12108).

All chains of all cases run as one batched program. A case is a w*, an nβ, a γ: a checkpoint, or a point of a curve over nβ.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.llc.chains import Chains, ChainSettings, Checkpoint, sample
from crux.llc.coordinates import Coordinates
from crux.llc.curvature import Curvature, curvature, whitened
from crux.llc.diagnostics import chain_statistics
from crux.llc.landscape import Landscape
from crux.llc.losses import Fixed, Loss, Minibatches
from crux.llc.noise import Noise
from crux.llc.predicted import predicted_llc
from crux.llc.samplers.interface import Posterior, Sampler
from crux.llc.step_size import check_step_size, default_step_size, stiffness

SHIFT = 0.05
"""A w* that lies so much above the minimum next to it (in units of λ) causes a warning."""

BELOW = 0.01
"""Chains have left the basin if a larger share of draws than this has a lower loss than w*."""

FAR = 4.0
"""Or if ‖w − w*‖² is so many times what the Gaussian around w* has."""


class NotAMinimumWarning(UserWarning):
    """w* is not where its gradient vanishes."""


class LLC(NamedTuple):
    """An estimate, one row per case; float64 on the CPU."""

    mean: Float[Tensor, "case"]
    """λ̂"""
    standard_error: Float[Tensor, "case"]
    r_hat: Float[Tensor, "case"]
    ess: Float[Tensor, "case"]
    per_chain: Float[Tensor, "case chain"]
    predicted: Float[Tensor, "case"]
    """What λ̂ comes out as on a quadratic loss with this Hessian, at this nβ, γ, step size and minibatch noise (predicted.py)."""
    unbiased: Float[Tensor, "case"]
    """The same without the biases of step size and minibatches: what is left is the localisation's."""
    spectrum_exact: bool
    """All eigenvalues entered `predicted`; else a Lanczos quadrature of them."""
    largest: Float[Tensor, "case"]
    """Largest eigenvalue of the Hessian at w*."""
    smallest: Float[Tensor, "case"]
    step_size: Float[Tensor, "case"]
    nbeta: Float[Tensor, "case"]
    gamma: Float[Tensor, "case"]
    acceptance: Float[Tensor, "case"]
    """Mean probability with which moves were accepted; 1 for SGLD."""
    loss_at_start: Float[Tensor, "case"]
    """L(w*) on the evaluation data."""
    gradient_norm: Float[Tensor, "case"]
    """‖∇L(w*)‖"""
    shift: Float[Tensor, "case"]
    """By how much, at least, the estimate is lowered because w* is not a minimum: nβ L falls so far along the gradient."""
    below: Float[Tensor, "case"]
    """Share of draws whose nβ L lies noticeably below that of w*."""
    spread: Float[Tensor, "case"]
    """Mean of ‖w − w*‖² over that of the Gaussian around w*, Σ 1 / (nβ a_i + γ)."""
    escaped: Bool[Tensor, "case"]
    """Chains left the basin of w*: the number is about another place."""
    trace: Float[Tensor, "case chain kept"]
    """nβ (L(w) − L(w*)) along each chain."""
    distance: Float[Tensor, "case chain kept"]
    """‖w − w*‖ at the same draws."""


def estimate_llc(
    loss: Loss,
    params: Mapping[str, Float[Tensor, "case ..."]],
    *,
    gradient_data: Fixed | Minibatches,
    evaluation_data: Fixed,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    chains: ChainSettings,
    seeds: Sequence[int],
    free: Mapping[str, Bool[Tensor, "..."]] | None = None,
    checkpoint: Checkpoint | None = None,
) -> LLC:
    """Sample around w* and compare the loss there with that of w*.

    Args:
        loss: of all chains (losses.py): row r is chain r mod n_chains of case r div n_chains. `over_chains` makes one from one network's.
        params: w* of each case.
        gradient_data: what the chains follow the gradient of.
        evaluation_data: what L(w) and L(w*) are measured on, the same for both, so that its noise cancels.
        nbeta: nβ; n / log n for a learning coefficient at n samples.
        gamma: pull to w*; shrinks the estimate if it is not far below nβ a_i.
        seeds: of each case's noise.
        free: numbers of the parameters that move; None: all.
        checkpoint: where the chains are saved now and then; an estimate that finds its own file there continues from it, bit for bit.

    Raises:
        UserError: a step size that diverges, data or a sampler that do not go together, a loss that stopped being a number.
    """
    _check(chains, gradient_data, n_cases=len(next(iter(params.values()))), nbeta=nbeta, gamma=gamma, seeds=seeds)
    at = Coordinates(params, free=free)
    centre = at.start(chains.n_chains)
    noise = Noise(seeds, n_chains=chains.n_chains, n=at.n, like=centre)
    landscape = Landscape(loss, at, gradient_data, evaluation_data, noise.rows, chains.n_chains)
    found, sampler = curvature(landscape), chains.sampler
    precise = {"nbeta": nbeta.double().cpu(), "gamma": gamma.double().cpu()}
    stiff, whitening = stiffness(found.largest, **precise), None
    if sampler.whitened:
        stiff, whitening = torch.ones_like(stiff), whitened(found, **precise).to(centre)
    if chains.step_size is None:
        chains = chains._replace(step_size=_default_step_size(found, sampler, **precise))
    assert chains.step_size is not None
    _warn_of_no_minimum(found, _shift(found, **precise))

    def rows(of: Tensor) -> Tensor:
        return of.to(centre).repeat_interleave(chains.n_chains)

    posterior = Posterior(centre, rows(nbeta), rows(gamma), landscape.gradient, whitening)
    size = rows(chains.step_size)
    if sampler.stretch == 1:
        check_step_size(size.double().cpu(), stiff.repeat_interleave(chains.n_chains), where="at w*")
    sampled = sample(landscape, posterior, settings=chains, size=size, noise=noise, checkpoint=checkpoint)
    return _summarise(landscape, found, sampled, settings=chains, **precise)


def _default_step_size(found: Curvature, sampler: Sampler, *, nbeta: Tensor, gamma: Tensor) -> Float[Tensor, "case"]:
    """Return ε by the largest curvature at w*, which is 1 in every direction for a sampler that is whitened."""
    return default_step_size(
        torch.zeros_like(found.largest) if sampler.whitened else found.largest,
        nbeta=nbeta,
        gamma=torch.ones_like(gamma) if sampler.whitened else gamma,
        stretch=sampler.stretch,
        corrected=sampler.corrected,
    )


def _summarise(
    landscape: Landscape,
    found: Curvature,
    sampled: Chains,
    *,
    settings: ChainSettings,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
) -> LLC:
    """Return the estimates of all cases from their chains."""
    sampler, draws, n_chains = settings.sampler, settings.draws, settings.n_chains
    assert settings.step_size is not None
    step_size = settings.step_size.double().cpu()

    def cases(of: Tensor) -> Tensor:
        return of.double().cpu().unflatten(0, (-1, n_chains))

    start = landscape.evaluate(landscape.at.start(n_chains))
    trace = nbeta[:, None, None] * cases(torch.stack(sampled.losses, 1) - start[:, None])
    chains, single = chain_statistics(trace), chain_statistics(trace.flatten(0, 1)[:, None])
    stretched = cases(sampler.scale(sampled.state, settings.steps).mean(1)).mean(1)
    below = (trace < -SHIFT).double().mean((1, 2))
    spread = cases(sampled.square_distance / draws).mean(1) / (
        found.weights / (nbeta[:, None] * found.values.clamp(min=0) + gamma[:, None])
    ).sum(1)
    escaped = (single.mean + 3 * single.standard_error < 0).unflatten(0, (-1, n_chains)).any(1)
    escaped |= (chains.mean + 3 * chains.standard_error < 0) | (spread > FAR)
    escaped |= (below > BELOW) & torch.tensor(landscape.same_data)

    def predicted(eps: Tensor, gradient_noise: Tensor) -> Tensor:
        return predicted_llc(
            found.values, weights=found.weights, nbeta=nbeta, gamma=gamma, step_size=eps, noise=gradient_noise
        )

    biased = torch.zeros_like(step_size) if sampler.corrected else step_size * stretched
    return LLC(
        mean=chains.mean,
        standard_error=chains.standard_error,
        r_hat=chains.r_hat,
        ess=chains.ess,
        per_chain=trace.mean(2),
        predicted=predicted(biased, found.noise),
        unbiased=predicted(torch.zeros_like(step_size), torch.zeros_like(found.noise)),
        spectrum_exact=found.exact,
        largest=found.largest,
        smallest=found.values.amin(1),
        step_size=step_size,
        nbeta=nbeta,
        gamma=gamma,
        acceptance=cases(sampled.acceptance / draws).mean(1),
        loss_at_start=cases(start)[:, 0],
        gradient_norm=found.gradient_norm,
        shift=_shift(found, nbeta=nbeta, gamma=gamma),
        below=below,
        spread=spread,
        escaped=escaped,
        trace=trace[:, :, settings.kept_draws],
        distance=cases(torch.stack(sampled.distances, 1)),
    )


def _check(
    chains: ChainSettings,
    data: Fixed | Minibatches,
    *,
    n_cases: int,
    nbeta: Tensor,
    gamma: Tensor,
    seeds: Sequence[int],
) -> None:
    step_size = chains.step_size
    for name, given in {"nbeta": nbeta, "gamma": gamma, "seeds": seeds, "step_size": step_size}.items():
        if given is not None and len(given) != n_cases:
            raise UserError(f"{name}: {len(given)} values for {n_cases} cases; one for each is needed")
    for name, least in {"n_chains": 1, "burn_in": 1, "draws": 4, "every": 1}.items():
        if (value := getattr(chains, name)) < least:
            raise UserError(f"{name}={value}: must be {least} or more")
    if not bool((nbeta > 0).all()) or not bool((gamma >= 0).all()):
        raise UserError("nbeta must be more than 0 and gamma 0 or more")
    if step_size is not None and not bool((step_size > 0).all()):
        raise UserError("step_size must be more than 0")
    if chains.sampler.corrected and isinstance(data, Minibatches):
        raise UserError(f"{chains.sampler.name} accepts and refuses moves by the loss: gradient_data must be Fixed")


def _shift(found: Curvature, *, nbeta: Float[Tensor, "case"], gamma: Float[Tensor, "case"]) -> Float[Tensor, "case"]:
    """Return by how much nβ L falls at least beside w*: by a step along the gradient alone, L falls by ‖g‖² / (2 a_max) or more."""
    return nbeta**2 * found.gradient_norm.square() / (2 * stiffness(found.largest, nbeta=nbeta, gamma=gamma))


def _warn_of_no_minimum(found: Curvature, shift: Float[Tensor, "case"]) -> None:
    if bool((shift > SHIFT).any()):
        case = int(shift.argmax())
        warnings.warn(
            f"case {case}: w* is not a minimum, its gradient has norm {found.gradient_norm[case]:.3g}: the loss beside it is "
            f"lower, which lowers the estimate by {shift[case]:.2g} or more; train further, or use a behavioural loss",
            NotAMinimumWarning,
            stacklevel=3,
        )
