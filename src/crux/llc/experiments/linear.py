"""Deep linear networks whose redundant factors are zero: estimates over nβ, next to an exact sampler's and Aoyagi's λ.

The minimum is no manifold there, and nothing is quadratic: the estimate approaches λ like 1 / log nβ. What it must agree with at each nβ
is the Gibbs sampler of linear_network.py, which has no step size.
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.calibration import ERRORS
from crux.llc.diagnostics import ChainStatistics
from crux.llc.estimate import LLC
from crux.llc.experiments.sampling import (
    arrays,
    explain_cases,
    nbeta_tensor,
    sample_cases,
    table,
    table_rows,
    trend_curve,
)
from crux.llc.figures.llc_calibration import llc_trend
from crux.llc.known import deep_linear
from crux.llc.linear_network import gibbs, linear_loss_of, redundant_zero
from crux.llc.losses import NO_DATA
from crux.llc.options import LinearNetworks
from crux.runs.experiment import Experiment
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

SWEEPS = 2000
"""Of the Gibbs sampler, a fifth of them before anything is kept."""

CHAINS = 32


def result(options: LinearNetworks, run: ActiveRun) -> Result:
    """Check that every estimate is within three joint standard errors of the exact sampler's, and that one rises with nβ towards λ."""
    nbeta = nbeta_tensor(options)
    rows, explanations, checks, metrics, kept, curves = [], [], [], {}, {}, {}
    for i, (widths, rank) in enumerate(zip(options.widths, options.ranks, strict=True)):
        shape, known = "-".join(map(str, widths)), deep_linear(widths, rank).llc
        name = f"{shape}, rank {rank}"
        llc, exact = sample_network(options, run, widths, rank, nbeta=nbeta, name=f"{i}_{shape}_{rank}")
        joint = (llc.standard_error.square() + exact.standard_error.square()).sqrt()
        for j, off in enumerate(((llc.mean - exact.mean) / joint).tolist()):
            where = f"{name}, nβ = {float(nbeta[j]):.0e}"
            checks.append(Check(f"{where}: joint standard errors from the Gibbs sampler", off, -ERRORS, ERRORS))
            metrics[f"llc/{shape}_{rank}/{float(nbeta[j]):.0e}"] = float(llc.mean[j])
            run.add_row(i * len(nbeta) + j + 1, {"llc": float(llc.mean[j]), "exact": float(exact.mean[j])})
        if len(nbeta) > 1:
            first, last = (abs(float(exact.mean[j]) - known) for j in (int(nbeta.argmin()), int(nbeta.argmax())))
            what = f"{name}: distance of the largest nβ from λ = {known:g}, of the smallest's"
            checks.append(Check(what, last / first, 0, 1))
        names, predicted = [name] * len(nbeta), exact.mean.tolist()
        rows += table_rows(names, llc, predicted=predicted, known=[known] * len(nbeta))
        explanations += explain_cases(names, llc)
        kept |= arrays(llc, f"{i}/") | {f"{i}/exact": exact.mean, f"{i}/exact_error": exact.standard_error}
        curves[name] = trend_curve(llc, slice(None), predicted=predicted, known=known)
    report = "\n".join([table(rows), "", *explanations]).rstrip()
    return Result(metrics, checks, {"trend": llc_trend(curves)}, kept, report)


def sample_network(
    options: LinearNetworks,
    run: ActiveRun,
    widths: Sequence[int],
    rank: int,
    *,
    nbeta: Float[Tensor, "case"],
    name: str,
) -> tuple[LLC, ChainStatistics]:
    """Return the estimates of one network at every nβ, and those of the Gibbs sampler."""
    gamma = torch.full_like(nbeta, options.gamma)
    llc = sample_cases(
        options,
        run,
        linear_loss_of(widths, rank),
        {k: v.expand(len(nbeta), -1, -1) for k, v in redundant_zero(widths, rank).items()},
        name=name,
        nbeta=nbeta,
        gamma=gamma,
        data=NO_DATA,
        step_size=1 / nbeta,  # at w* there may be no curvature to go by; c is about 1 / widths²
    )
    compute = partial(
        gibbs, widths, rank, nbeta=nbeta, gamma=gamma, n_chains=CHAINS, burn_in=SWEEPS // 5, draws=SWEEPS, seed=run.seed
    )
    return llc, ChainStatistics(**compute_once(run.folder, f"{name}_gibbs", lambda: compute()._asdict()))


EXPERIMENT = Experiment(LinearNetworks, result)
