"""The learning coefficient of chosen k-gons, at several nβ next to each other: λ is known (kgons.py)."""

import torch

from crux.llc.calibration import ERRORS
from crux.llc.experiments.kgons import Kgon, kgon_loss, localisation, polished
from crux.llc.experiments.sampling import (
    arrays,
    explain_cases,
    nbeta_tensor,
    sample_cases,
    standard_errors_off,
    table,
    table_rows,
    trend_curve,
)
from crux.llc.figures.llc_calibration import llc_trend
from crux.llc.figures.llc_traces import llc_traces
from crux.llc.losses import NO_DATA
from crux.llc.options import Kgons
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result


def result(options: Kgons, run: ActiveRun) -> Result:
    """Check that every estimate is within three standard errors of its prediction, in the basin of its k-gon."""
    kgons = [Kgon(k, options.plus, options.features or k + options.plus) for k in options.corners]
    n = len(options.nbetas)
    each = [kgon for kgon in kgons for _ in range(n)]
    nbeta = nbeta_tensor(options).repeat(len(kgons))
    gammas = [localisation(k) if options.gamma is None else options.gamma for k in each]
    llc = sample_cases(
        options,
        run,
        kgon_loss(each, n_chains=options.chains),
        polished(each),
        name="kgons",
        nbeta=nbeta,
        gamma=torch.tensor(gammas, dtype=torch.float64),
        data=NO_DATA,
    )
    predicted, names = llc.predicted.tolist(), [k.name for k in each]
    checks, metrics = [], {}
    for i, off in enumerate(standard_errors_off(llc, predicted)):
        where = f"{names[i]}, nβ = {float(nbeta[i]):.0e}"
        checks.append(Check(f"{where}: standard errors from the prediction", off, -ERRORS, ERRORS))
        checks.append(Check(f"{where}: left the basin", float(llc.escaped[i]), 0, 0))
        metrics[f"llc/{each[i].corners}/{float(nbeta[i]):.0e}"] = float(llc.mean[i])
        run.add_row(i + 1, {"llc": float(llc.mean[i]), "standard_error": float(llc.standard_error[i])})
    rows = table_rows(names, llc, predicted=predicted, known=[k.llc for k in each])
    curves = {
        kgon.name: trend_curve(llc, slice(i * n, (i + 1) * n), predicted=predicted, known=kgon.llc)
        for i, kgon in enumerate(kgons)
    }
    traces = llc_traces(
        [f"{name}, nβ = {float(nb):.0e}" for name, nb in zip(names, nbeta, strict=True)],
        llc.trace.numpy(),
        mean=llc.mean.tolist(),
        error=llc.standard_error.tolist(),
        known=[k.llc for k in each],
    )
    figures = {"traces": traces} | ({"trend": llc_trend(curves)} if n > 1 else {})
    report = "\n".join([table(rows), "", *explain_cases(names, llc)]).rstrip()
    return Result(metrics, checks, figures, arrays(llc, ""), report)


EXPERIMENT = Experiment(Kgons, result)
