"""Deep linear networks where the redundant factors are zero: estimates over nβ, beside an exact sampler's and Aoyagi's λ.

The minimum is no manifold there, and nothing is quadratic: the estimate approaches λ like 1 / log nβ. What it must agree with at each nβ
is the Gibbs sampler of linear_network.py, which has no step size.
"""

import torch

from crux.config.errors import UserError
from crux.config.schema import Config
from crux.llc.calibration import ERRORS
from crux.llc.experiments.sampling import arrays, curve, estimated, explained, keys, nbetas, table, table_rows
from crux.llc.figures.llc_calibration import llc_trend
from crux.llc.known import deep_linear
from crux.llc.linear_network import gibbs, linear_loss_of, redundant_zero
from crux.llc.losses import NO_DATA
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

SWEEPS = 2000
"""Of the Gibbs sampler, a fifth of them before anything is kept."""

CHAINS = 32


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """Every estimate within three joint standard errors of the exact sampler's; that one rises with nβ towards λ."""
    llc = keys(config)
    assert llc.widths is not None
    assert llc.ranks is not None
    assert llc.gamma is not None
    if not llc.gamma > 0:
        raise UserError(f"llc.gamma={llc.gamma}: must be more than 0, without it nothing bounds the redundant factors")
    nbeta = nbetas(llc)
    gamma = torch.full_like(nbeta, llc.gamma)
    rows, told, checks, metrics, kept, curves = [], [], [], {}, {}, {}
    for i, (widths, rank) in enumerate(zip(llc.widths, llc.ranks, strict=True)):
        name, known = f"{'-'.join(map(str, widths))}, rank {rank}", deep_linear(widths, rank)
        params = {k: v.expand(len(nbeta), -1, -1) for k, v in redundant_zero(widths, rank).items()}
        found = estimated(
            llc,
            linear_loss_of(widths, rank),
            params,
            nbeta=nbeta,
            gamma=gamma,
            step_size=1 / nbeta,  # at w* there may be no curvature to go by; c is about 1 / widths²
            gradient_data=NO_DATA,
            evaluation_data=NO_DATA,
            seed=config.seed,
            free=None,
        )
        exact = gibbs(
            widths, rank, nbeta=nbeta, gamma=gamma, n_chains=CHAINS, burn_in=SWEEPS // 5, draws=SWEEPS, seed=config.seed
        )
        joint = (found.standard_error.square() + exact.standard_error.square()).sqrt()
        for j, off in enumerate(((found.mean - exact.mean) / joint).tolist()):
            where = f"{name}, nβ = {float(nbeta[j]):.0e}"
            checks.append(Check(f"{where}: joint standard errors from the Gibbs sampler", off, -ERRORS, ERRORS))
            metrics[f"llc/{'-'.join(map(str, widths))}_{rank}/{float(nbeta[j]):.0e}"] = float(found.mean[j])
            add_row(i * len(nbeta) + j + 1, {"llc": float(found.mean[j]), "exact": float(exact.mean[j])})
        if len(nbeta) > 1:
            first, last = (abs(float(exact.mean[j]) - known.llc) for j in (int(nbeta.argmin()), int(nbeta.argmax())))
            checks.append(
                Check(
                    f"{name}: distance of the largest nβ from λ = {known.llc:g}, of the smallest's", last / first, 0, 1
                )
            )
        names = [name] * len(nbeta)
        rows += table_rows(names, found, predicted=exact.mean.tolist(), known=[known.llc] * len(nbeta))
        told += explained(names, found)
        kept |= arrays(found, f"{i}/") | {f"{i}/exact": exact.mean, f"{i}/exact_error": exact.standard_error}
        curves[name] = curve(found, slice(None), predicted=exact.mean.tolist(), known=known.llc)
    return Result(metrics, checks, {"trend": llc_trend(curves)}, kept, "\n".join([table(rows), "", *told]).rstrip())
