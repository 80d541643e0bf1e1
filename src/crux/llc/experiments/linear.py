"""Deep linear networks whose redundant factors are zero: estimates over nβ, compared with a Gibbs sampler and Aoyagi's λ.

The set of minima is not a manifold there and the loss is not quadratic, so that estimates approach λ only like 1 / log nβ. At each nβ,
they must agree with the Gibbs sampler of linear_network.py, which has no step size.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.calibration import MAX_ERRORS
from crux.llc.diagnostics import ChainStatistics
from crux.llc.estimate import LLC
from crux.llc.experiments.sampling import (
    estimate_arrays,
    estimate_rows,
    estimate_table,
    explain_cases,
    nbeta_tensor,
    sample_cases,
    trend_curve,
)
from crux.llc.figures.llc_calibration import llc_trend
from crux.llc.known import deep_linear_llc
from crux.llc.linear_network import linear_network_loss, minimum_weights, sample_with_gibbs
from crux.llc.losses import NO_DATA
from crux.llc.options import LinearNetworks
from crux.runs.experiment import Experiment
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

SWEEPS = 2000
"""Sweeps of the Gibbs sampler that are kept; it discards a fifth as many before them."""

CHAINS = 32
"""Chains of the Gibbs sampler."""


def result(options: LinearNetworks, run: ActiveRun) -> Result:
    """Check that estimates agree with the Gibbs sampler within three joint standard errors, and that these approach λ with nβ."""
    nbeta = nbeta_tensor(options)
    rows, explanations, checks, metrics, arrays, curves = [], [], [], {}, {}, {}
    for i, (widths, rank) in enumerate(zip(options.widths, options.ranks, strict=True)):
        shape, known = "-".join(map(str, widths)), deep_linear_llc(widths, rank).llc
        name = f"{shape}, rank {rank}"
        llc, exact = sample_network(options, run, widths, rank, nbeta=nbeta, name=f"{i}_{shape}_{rank}")
        joint = (llc.standard_error.square() + exact.standard_error.square()).sqrt()
        for j, error in enumerate(((llc.mean - exact.mean) / joint).tolist()):
            where = f"{name}, nβ = {float(nbeta[j]):.0e}"
            checks.append(
                Check(f"{where}: joint standard errors from the Gibbs sampler", error, -MAX_ERRORS, MAX_ERRORS)
            )
            metrics[f"llc/{shape}_{rank}/{float(nbeta[j]):.0e}"] = float(llc.mean[j])
            run.add_row(i * len(nbeta) + j + 1, {"llc": float(llc.mean[j]), "exact": float(exact.mean[j])})
        if len(nbeta) > 1:
            distances = (exact.mean - known).abs()
            at_smallest, at_largest = float(distances[nbeta.argmin()]), float(distances[nbeta.argmax()])
            ratio = f"{name}: distance from λ = {known:g} at the largest nβ, divided by that at the smallest"
            checks.append(Check(ratio, at_largest / at_smallest, 0, 1))
        names, predicted = [name] * len(nbeta), exact.mean.tolist()
        rows += estimate_rows(names, llc, predicted=predicted, known=[known] * len(nbeta))
        explanations += explain_cases(names, llc)
        arrays |= estimate_arrays(llc, f"{i}/") | {f"{i}/exact": exact.mean, f"{i}/exact_error": exact.standard_error}
        curves[name] = trend_curve(llc, slice(None), predicted=predicted, known=known)
    report = "\n".join([estimate_table(rows), "", *explanations]).rstrip()
    return Result(metrics, checks, {"trend": llc_trend(curves)}, arrays, report)


def sample_network(
    options: LinearNetworks,
    run: ActiveRun,
    widths: Sequence[int],
    rank: int,
    *,
    nbeta: Float[Tensor, "case"],
    name: str,
) -> tuple[LLC, ChainStatistics]:
    """Estimate one network at every nβ, by the options' sampler and by the Gibbs sampler."""
    gamma = torch.full_like(nbeta, options.gamma)
    llc = sample_cases(
        options,
        run,
        linear_network_loss(widths, rank),
        {k: v.expand(len(nbeta), -1, -1) for k, v in minimum_weights(widths, rank).items()},
        name=name,
        nbeta=nbeta,
        gamma=gamma,
        data=NO_DATA,
        step_size=1 / nbeta,  # the curvature at w* may be zero; c is about 1 / widths²
    )
    compute = partial(
        sample_with_gibbs,
        widths,
        rank,
        nbeta=nbeta,
        gamma=gamma,
        n_chains=CHAINS,
        burn_in=SWEEPS // 5,
        draws=SWEEPS,
        seed=run.seed,
    )
    return llc, ChainStatistics(**compute_once(run.folder, f"{name}_gibbs", lambda: compute()._asdict()))


EXPERIMENT = Experiment(LinearNetworks, result)
