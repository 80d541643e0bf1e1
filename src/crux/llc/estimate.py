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
from crux.llc.coordinates import Coordinates
from crux.llc.curvature import Curvature, curvature, stiffest_there, whitened
from crux.llc.diagnostics import chain_statistics
from crux.llc.losses import Fixed, Loss, Minibatches, value, value_and_gradient
from crux.llc.noise import Noise
from crux.llc.predicted import predicted_llc
from crux.llc.samplers.interface import Posterior, Sampler, State
from crux.llc.step_size import check_step_size, default_step_size, stiffness

KEPT = 500
"""Points of each chain's trace in the result, evenly spaced."""

LOOK = 1000
"""Steps between two looks at whether every loss is still a number."""

SHIFT = 0.05
"""A w* that lies so much above the minimum beside it (in units of λ) is warned of."""

BELOW = 0.01
"""A basin was left where a larger share of draws than this has a lower loss than w*."""

FAR = 4.0
"""Or where ‖w − w*‖² is so many times what the Gaussian around w* has."""


class NotAMinimumWarning(UserWarning):
    """w* is not where its gradient vanishes."""


class LLC(NamedTuple):
    """What came out, a row a case; float64 on the CPU."""

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
    """Share of draws where nβ L lies noticeably below that of w*."""
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
    step_size: Float[Tensor, "case"] | None,
    sampler: Sampler,
    n_chains: int,
    burn_in: int,
    draws: int,
    every: int,
    seeds: Sequence[int],
    free: Mapping[str, Bool[Tensor, "..."]] | None,
) -> LLC:
    """Samples around w* and compares the loss there with that of w*.

    Args:
        loss: of all chains (losses.py): row r is chain r mod n_chains of case r div n_chains. `over_chains` makes one from one network's.
        params: w* of each case.
        gradient_data: what the chains feel.
        evaluation_data: what L(w) and L(w*) are measured on, the same for both, so that its noise cancels.
        nbeta: nβ; n / log n for a learning coefficient at n samples.
        gamma: pull to w*; shrinks the estimate where it is not far below nβ a_i.
        step_size: ε; None: 0.1 / (nβ a_max + γ), 0.5 for a sampler that accepts and refuses, and 0.5 for one that is whitened.
        burn_in: steps that are discarded. draws: kept of each chain, `every` steps apart.
        seeds: of each case's noise.
        free: numbers of the parameters that move; None: all.

    Raises:
        UserError: a step size that diverges, data or a sampler that do not go together, a loss that stopped being a number.
    """
    n_cases = len(next(iter(params.values())))
    _check(sampler, gradient_data, n_cases, nbeta, gamma, step_size, seeds, n_chains, burn_in, draws, every)
    at = Coordinates(params, free=free)
    centre = at.start(n_chains)
    noise = Noise(seeds, n_chains=n_chains, n=at.n, like=centre)
    found = curvature(loss, at, centre, gradient_data, evaluation_data, noise.rows, n_chains)
    curved = stiff = stiffness(found.largest, nbeta=nbeta.double(), gamma=gamma.double())
    whitening = whitened(found, nbeta=nbeta.double().cpu(), gamma=gamma.double().cpu()) if sampler.whitened else None
    if whitening is not None:
        stiff = torch.ones_like(stiff)
    if step_size is None:
        step_size = default_step_size(
            torch.zeros_like(stiff) if sampler.whitened else found.largest,
            nbeta=nbeta.double(),
            gamma=stiff if sampler.whitened else gamma.double(),
            stretch=sampler.stretch,
            corrected=sampler.corrected,
        )
    evaluated = evaluation_data.at(0, noise.rows)
    with torch.no_grad():
        start = value(loss, at, centre, evaluated)
    shift = nbeta.double() ** 2 * found.gradient_norm.square() / (2 * curved)
    _warn_of_no_minimum(found, shift)

    def rows(of: Tensor) -> Tensor:
        return of.to(centre).repeat_interleave(n_chains)

    posterior = Posterior(
        centre,
        rows(nbeta),
        rows(gamma),
        lambda w, step: value_and_gradient(loss, at, w, gradient_data.at(step, noise.rows)),
        None if whitening is None else whitening.to(centre),
    )
    size = rows(step_size)
    state = sampler.start(centre, posterior)
    stretched = sampler.scale(state, 1).amax(1) if sampler.stretch == 1 else torch.zeros_like(size)
    check_step_size((size * stretched).double().cpu(), stiff.repeat_interleave(n_chains), where="at w*")
    same = isinstance(gradient_data, Fixed) and gradient_data.batch is evaluation_data.batch
    kept = set(torch.linspace(0, draws - 1, min(draws, KEPT)).long().tolist())
    losses, distances, acceptance, square = [], [], torch.zeros_like(size), torch.zeros_like(size)
    for step in range(1, burn_in + draws * every + 1):
        state = sampler.step(state, step, posterior=posterior, size=size, noise=noise)
        if step % LOOK == 0:
            _check_finite(state, step, n_chains)
        if step == burn_in:
            _check_finite(state, step, n_chains)
            there = stiffest_there(loss, at, state.w, gradient_data, evaluation_data, noise.rows)
            h = stiffness(there, nbeta=rows(nbeta).double().cpu(), gamma=rows(gamma).double().cpu())
            longest = (size * sampler.scale(state, step).amax(1)).double().cpu()
            if not sampler.corrected:
                check_step_size(longest, h, where="where the chains went")
        if step > burn_in and (step - burn_in) % every == 0:
            if same:
                losses.append(state.loss)
            else:
                with torch.no_grad():
                    losses.append(value(loss, at, state.w, evaluated))
            acceptance += state.acceptance
            away = (state.w - centre).square().sum(1)
            square += away
            if len(losses) - 1 in kept:
                distances.append(away.sqrt())
    _check_finite(state, burn_in + draws * every, n_chains)

    def cases(of: Tensor) -> Tensor:
        return of.double().cpu().unflatten(0, (n_cases, n_chains))

    nbeta, gamma, step_size = (v.double().cpu() for v in (nbeta, gamma, step_size))
    trace = nbeta[:, None, None] * cases(torch.stack(losses, 1) - start[:, None])
    chains, single = chain_statistics(trace), chain_statistics(trace.flatten(0, 1)[:, None])
    stretched = cases(sampler.scale(state, burn_in + draws * every).mean(1)).mean(1)
    below = (trace < -SHIFT).double().mean((1, 2))
    spread = cases(square / draws).mean(1) / (
        found.weights / (nbeta[:, None] * found.values.clamp(min=0) + gamma[:, None])
    ).sum(1)
    escaped = (single.mean + 3 * single.standard_error < 0).unflatten(0, (n_cases, n_chains)).any(1)
    escaped |= (chains.mean + 3 * chains.standard_error < 0) | (spread > FAR)
    escaped |= (below > BELOW) & torch.tensor(same)

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
        acceptance=cases(acceptance / draws).mean(1),
        loss_at_start=cases(start)[:, 0],
        gradient_norm=found.gradient_norm,
        shift=shift.cpu(),
        below=below,
        spread=spread,
        escaped=escaped,
        trace=trace[:, :, sorted(kept)],
        distance=cases(torch.stack(distances, 1)),
    )


def _check(
    sampler: Sampler,
    data: Fixed | Minibatches,
    n_cases: int,
    nbeta: Tensor,
    gamma: Tensor,
    step_size: Tensor | None,
    seeds: Sequence[int],
    n_chains: int,
    burn_in: int,
    draws: int,
    every: int,
) -> None:
    for name, given in {"nbeta": nbeta, "gamma": gamma, "seeds": seeds, "step_size": step_size}.items():
        if given is not None and len(given) != n_cases:
            raise UserError(f"{name}: {len(given)} values for {n_cases} cases; one for each is needed")
    for name, given, least in (
        ("n_chains", n_chains, 1),
        ("burn_in", burn_in, 1),
        ("draws", draws, 4),
        ("every", every, 1),
    ):
        if given < least:
            raise UserError(f"{name}={given}: must be {least} or more")
    if not bool((nbeta > 0).all()) or not bool((gamma >= 0).all()):
        raise UserError("nbeta must be more than 0 and gamma 0 or more")
    if step_size is not None and not bool((step_size > 0).all()):
        raise UserError("step_size must be more than 0")
    if sampler.corrected and isinstance(data, Minibatches):
        raise UserError(f"{sampler.name} accepts and refuses moves by the loss: gradient_data must be Fixed")


def _check_finite(state: State, step: int, n_chains: int) -> None:
    broken = (~(state.loss.isfinite() & state.w.isfinite().all(1))).nonzero().flatten().tolist()
    if broken:
        case, chain = divmod(broken[0], n_chains)
        raise UserError(
            f"case {case}, chain {chain}: the loss is not a finite number any more by step {step}; the step size "
            "diverges there, give a smaller one, or a larger gamma to hold the chains near w*"
        )


def _warn_of_no_minimum(found: Curvature, shift: Float[Tensor, "case"]) -> None:
    """By a step along the gradient alone, L falls by ‖g‖² / (2 a_max) or more."""
    if bool((shift > SHIFT).any()):
        case = int(shift.argmax())
        warnings.warn(
            f"case {case}: w* is not a minimum, its gradient has norm {found.gradient_norm[case]:.3g}: the loss beside it is "
            f"lower, which lowers the estimate by {shift[case]:.2g} or more; train further, or use a behavioural loss",
            NotAMinimumWarning,
            stacklevel=3,
        )
