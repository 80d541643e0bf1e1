"""The local learning coefficient λ̂ = nβ (E_w[L(w)] − L(w*)), with w ~ exp(−nβ L(w) − γ/2 ‖w − w*‖²) (Lau et al. 2308.12108).

A case is a combination of w*, nβ and γ, for example a checkpoint or a point of a curve over nβ. All chains of all cases run as
one batched program.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crux.config.errors import UserError
from crux.llc.chains import Chains, ChainSettings, Checkpoint, run_chains
from crux.llc.coordinates import Coordinates
from crux.llc.curvature import Curvature, compute_whitening, measure_curvature
from crux.llc.diagnostics import chain_statistics
from crux.llc.landscape import Landscape
from crux.llc.losses import ChainLoss, FixedData, Minibatches
from crux.llc.noise import Noise
from crux.llc.prediction import predict_llc
from crux.llc.samplers.interface import Posterior, Sampler
from crux.llc.step_size import check_step_size, default_step_size, stiffness

MAX_SHIFT = 0.05
"""Largest bias of λ̂ from a w* that is not a minimum (`LLC.shift`) without a warning."""

MAX_SHARE_BELOW = 0.01
"""Chains have left the basin of w* if more than this share of draws has a lower loss than w*."""

MAX_SPREAD = 4.0
"""Chains have also left the basin if the mean of ‖w − w*‖² is more than this many times that of the Gaussian approximation around w*."""


class NotAMinimumWarning(UserWarning):
    """The gradient at w* is not zero."""


class LLC(NamedTuple):
    """Estimates with their diagnostics, one row per case; float64 on the CPU."""

    mean: Float[Tensor, "case"]
    """The estimate λ̂."""
    standard_error: Float[Tensor, "case"]
    """Standard error of λ̂, from the effective sample size."""
    r_hat: Float[Tensor, "case"]
    ess: Float[Tensor, "case"]
    """Effective sample size."""
    per_chain: Float[Tensor, "case chain"]
    """The estimate from each chain alone."""
    predicted: Float[Tensor, "case"]
    """Expectation of λ̂ for a quadratic loss with this Hessian, at this nβ, γ, step size and minibatch noise (prediction.py)."""
    unbiased: Float[Tensor, "case"]
    """The same expectation without the biases of step size and minibatch noise; only the bias of the localisation γ is left."""
    spectrum_exact: bool
    """True if `predicted` uses all eigenvalues; False if it uses a Lanczos quadrature."""
    largest: Float[Tensor, "case"]
    """Largest eigenvalue of the Hessian at w*."""
    smallest: Float[Tensor, "case"]
    """Smallest eigenvalue of the Hessian at w*."""
    step_size: Float[Tensor, "case"]
    nbeta: Float[Tensor, "case"]
    gamma: Float[Tensor, "case"]
    acceptance: Float[Tensor, "case"]
    """Mean probability of accepting a move; 1 for SGLD."""
    loss_at_start: Float[Tensor, "case"]
    """L(w*) on the evaluation data."""
    gradient_norm: Float[Tensor, "case"]
    """Norm of the gradient, ‖∇L(w*)‖."""
    shift: Float[Tensor, "case"]
    """Lower bound on the amount by which λ̂ is too small because w* is not a minimum: the fall of nβ L along the gradient."""
    below: Float[Tensor, "case"]
    """Share of draws whose nβ L is below that of w* by more than `MAX_SHIFT`."""
    spread: Float[Tensor, "case"]
    """Mean of ‖w − w*‖², divided by that of the Gaussian approximation around w*, Σ_i 1 / (nβ a_i + γ)."""
    escaped: Bool[Tensor, "case"]
    """True if chains left the basin of w*, so that the estimate is not about w*."""
    trace: Float[Tensor, "case chain kept"]
    """nβ (L(w) − L(w*)) at evenly spaced draws of each chain."""
    distance: Float[Tensor, "case chain kept"]
    """‖w − w*‖ at the draws of `trace`."""


def estimate_llc(
    loss: ChainLoss,
    params: Mapping[str, Float[Tensor, "case ..."]],
    *,
    gradient_data: FixedData | Minibatches,
    evaluation_data: FixedData,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
    chains: ChainSettings,
    seeds: Sequence[int],
    free: Mapping[str, Bool[Tensor, "..."]] | None = None,
    checkpoint: Checkpoint | None = None,
) -> LLC:
    """Estimate the learning coefficient of every case by sampling around its w*.

    Args:
        loss: loss of all chains at once (losses.py): row r is chain r mod n_chains of case r div n_chains. `map_over_chains`
            makes such a loss from that of a single network.
        params: w* of each case.
        gradient_data: data on which the chains' gradients are computed.
        evaluation_data: data on which both L(w) and L(w*) are computed, so that its noise cancels.
        nbeta: nβ; n / log n for a learning coefficient at n samples.
        gamma: strength of the pull to w*; it lowers the estimate unless it is far below nβ a_i.
        chains: sampler, number and length of the chains.
        seeds: one seed per case.
        free: masks of the entries of each parameter that move; None: all move.
        checkpoint: file in which the chains are saved regularly; an estimate that finds its file continues from it bit for bit.

    Raises:
        UserError: for a step size that diverges, data that the sampler cannot use, or a loss that is no longer finite.
    """
    _check_arguments(
        chains, gradient_data, n_cases=len(next(iter(params.values()))), nbeta=nbeta, gamma=gamma, seeds=seeds
    )
    coordinates = Coordinates(params, free=free)
    centre = coordinates.start(chains.n_chains)
    noise = Noise(seeds, n_chains=chains.n_chains, n=coordinates.n, like=centre)
    landscape = Landscape(loss, coordinates, gradient_data, evaluation_data, noise.rows, chains.n_chains)
    curvature, sampler = measure_curvature(landscape), chains.sampler
    precise = {"nbeta": nbeta.double().cpu(), "gamma": gamma.double().cpu()}
    largest_h, whitening = stiffness(curvature.largest, **precise), None
    if sampler.whitened:  # in whitened coordinates every curvature is 1
        largest_h, whitening = torch.ones_like(largest_h), compute_whitening(curvature, **precise).to(centre)
    if chains.step_size is None:
        chains = chains._replace(step_size=_choose_step_size(curvature, sampler, **precise))
    assert chains.step_size is not None
    _warn_if_not_a_minimum(curvature, _bound_shift(curvature, **precise))

    def per_chain(values: Tensor) -> Tensor:
        return values.to(centre).repeat_interleave(chains.n_chains)

    posterior = Posterior(centre, per_chain(nbeta), per_chain(gamma), landscape.gradient, whitening)
    size = per_chain(chains.step_size)
    if sampler.max_scale == 1:  # a sampler that scales ε has no scale yet; its steps are checked after burn-in
        check_step_size(size.double().cpu(), largest_h.repeat_interleave(chains.n_chains), where="at w*")
    sampled = run_chains(landscape, posterior, settings=chains, size=size, noise=noise, checkpoint=checkpoint)
    return _summarise(landscape, curvature, sampled, settings=chains, **precise)


def _choose_step_size(curvature: Curvature, sampler: Sampler, *, nbeta: Tensor, gamma: Tensor) -> Float[Tensor, "case"]:
    """Return ε from the largest curvature at w*; in the coordinates of a whitened sampler every curvature is 1."""
    return default_step_size(
        torch.zeros_like(curvature.largest) if sampler.whitened else curvature.largest,
        nbeta=nbeta,
        gamma=torch.ones_like(gamma) if sampler.whitened else gamma,
        max_scale=sampler.max_scale,
        corrected=sampler.corrected,
    )


def _summarise(
    landscape: Landscape,
    curvature: Curvature,
    sampled: Chains,
    *,
    settings: ChainSettings,
    nbeta: Float[Tensor, "case"],
    gamma: Float[Tensor, "case"],
) -> LLC:
    """Compute the estimates of all cases from their chains."""
    sampler, draws, n_chains = settings.sampler, settings.draws, settings.n_chains
    assert settings.step_size is not None
    step_size = settings.step_size.double().cpu()

    def by_case(rows: Tensor) -> Tensor:
        return rows.double().cpu().unflatten(0, (-1, n_chains))

    start = landscape.evaluate(landscape.coordinates.start(n_chains))
    trace = nbeta[:, None, None] * by_case(torch.stack(sampled.losses, 1) - start[:, None])
    of_cases = chain_statistics(trace)
    of_chains = chain_statistics(trace.flatten(0, 1)[:, None])  # each chain as a case of its own
    scale = by_case(sampler.scale(sampled.state, settings.steps).mean(1)).mean(1)
    below = (trace < -MAX_SHIFT).double().mean((1, 2))
    spread = by_case(sampled.square_distance / draws).mean(1) / (
        curvature.weights / (nbeta[:, None] * curvature.values.clamp(min=0) + gamma[:, None])
    ).sum(1)
    # significantly negative estimates: the chains found a loss lower than L(w*)
    escaped = (of_chains.mean + 3 * of_chains.standard_error < 0).unflatten(0, (-1, n_chains)).any(1)
    escaped |= (of_cases.mean + 3 * of_cases.standard_error < 0) | (spread > MAX_SPREAD)
    # on other data than those of the gradients, w* need not be a minimum, and lower losses near it prove nothing
    escaped |= (below > MAX_SHARE_BELOW) & torch.tensor(landscape.same_data)

    def predict(eps: Tensor, gradient_noise: Tensor) -> Tensor:
        return predict_llc(
            curvature.values, weights=curvature.weights, nbeta=nbeta, gamma=gamma, step_size=eps, noise=gradient_noise
        )

    biasing_step_size = torch.zeros_like(step_size) if sampler.corrected else step_size * scale
    return LLC(
        mean=of_cases.mean,
        standard_error=of_cases.standard_error,
        r_hat=of_cases.r_hat,
        ess=of_cases.ess,
        per_chain=trace.mean(2),
        predicted=predict(biasing_step_size, curvature.noise),
        unbiased=predict(torch.zeros_like(step_size), torch.zeros_like(curvature.noise)),
        spectrum_exact=curvature.exact,
        largest=curvature.largest,
        smallest=curvature.values.amin(1),
        step_size=step_size,
        nbeta=nbeta,
        gamma=gamma,
        acceptance=by_case(sampled.acceptance / draws).mean(1),
        loss_at_start=by_case(start)[:, 0],
        gradient_norm=curvature.gradient_norm,
        shift=_bound_shift(curvature, nbeta=nbeta, gamma=gamma),
        below=below,
        spread=spread,
        escaped=escaped,
        trace=trace[:, :, settings.trace_draws],
        distance=by_case(torch.stack(sampled.distances, 1)),
    )


def _check_arguments(
    chains: ChainSettings,
    data: FixedData | Minibatches,
    *,
    n_cases: int,
    nbeta: Tensor,
    gamma: Tensor,
    seeds: Sequence[int],
) -> None:
    step_size = chains.step_size
    for name, given in {"nbeta": nbeta, "gamma": gamma, "seeds": seeds, "step_size": step_size}.items():
        if given is not None and len(given) != n_cases:
            raise UserError(f"{name}: {len(given)} values for {n_cases} cases; one per case is needed")
    for name, minimum in {"n_chains": 1, "burn_in": 1, "draws": 4, "every": 1}.items():
        if (value := getattr(chains, name)) < minimum:
            raise UserError(f"{name}={value}: must be {minimum} or more")
    if not bool((nbeta > 0).all()) or not bool((gamma >= 0).all()):
        raise UserError("nbeta must be more than 0 and gamma 0 or more")
    if step_size is not None and not bool((step_size > 0).all()):
        raise UserError("step_size must be more than 0")
    if chains.sampler.corrected and isinstance(data, Minibatches):
        raise UserError(
            f"{chains.sampler.name} accepts or rejects moves by their loss: gradient_data must be FixedData"
        )


def _bound_shift(
    curvature: Curvature, *, nbeta: Float[Tensor, "case"], gamma: Float[Tensor, "case"]
) -> Float[Tensor, "case"]:
    """Return a lower bound on the fall of nβ L near w* (`LLC.shift`): along the gradient alone, L falls by ‖∇L‖² / (2 a_max) or more."""
    return nbeta**2 * curvature.gradient_norm.square() / (2 * stiffness(curvature.largest, nbeta=nbeta, gamma=gamma))


def _warn_if_not_a_minimum(curvature: Curvature, shift: Float[Tensor, "case"]) -> None:
    if bool((shift > MAX_SHIFT).any()):
        case = int(shift.argmax())
        warnings.warn(
            f"case {case}: w* is not a minimum, its gradient has norm {curvature.gradient_norm[case]:.3g}: the loss near it is "
            f"lower, which lowers the estimate by {shift[case]:.2g} or more; train further, or use a behavioural loss",
            NotAMinimumWarning,
            stacklevel=3,
        )
