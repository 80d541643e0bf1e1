"""Estimate the learning coefficients of k-gons, which are known (kgons.py), at several nβ."""

import torch

from crux.llc.calibration import MAX_ERRORS
from crux.llc.experiments.kgons import Kgon, default_gamma, kgon_loss, optimise_kgons
from crux.llc.experiments.sampling import (
    errors_from_prediction,
    estimate_arrays,
    estimate_rows,
    estimate_table,
    explain_cases,
    nbeta_tensor,
    sample_cases,
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
    """Check that every estimate is within three standard errors of its prediction and that no chain left its basin."""
    kgons = [Kgon(k, options.plus, options.features or k + options.plus) for k in options.corners]
    n = len(options.nbetas)
    per_case = [kgon for kgon in kgons for _ in range(n)]
    nbeta = nbeta_tensor(options).repeat(len(kgons))
    gammas = [default_gamma(k) if options.gamma is None else options.gamma for k in per_case]
    llc = sample_cases(
        options,
        run,
        kgon_loss(per_case, n_chains=options.chains),
        optimise_kgons(per_case),
        name="kgons",
        nbeta=nbeta,
        gamma=torch.tensor(gammas, dtype=torch.float64),
        data=NO_DATA,
    )
    predicted, names = llc.predicted.tolist(), [k.name for k in per_case]
    checks, metrics = [], {}
    for i, error in enumerate(errors_from_prediction(llc, predicted)):
        where = f"{names[i]}, nβ = {float(nbeta[i]):.0e}"
        checks.append(Check(f"{where}: standard errors from the prediction", error, -MAX_ERRORS, MAX_ERRORS))
        checks.append(Check(f"{where}: left the basin", float(llc.escaped[i]), 0, 0))
        metrics[f"llc/{per_case[i].corners}/{float(nbeta[i]):.0e}"] = float(llc.mean[i])
        run.add_row(i + 1, {"llc": float(llc.mean[i]), "standard_error": float(llc.standard_error[i])})
    rows = estimate_rows(names, llc, predicted=predicted, known=[k.llc for k in per_case])
    curves = {
        kgon.name: trend_curve(llc, slice(i * n, (i + 1) * n), predicted=predicted, known=kgon.llc)
        for i, kgon in enumerate(kgons)
    }
    traces = llc_traces(
        [f"{name}, nβ = {float(nb):.0e}" for name, nb in zip(names, nbeta, strict=True)],
        llc.trace.numpy(),
        mean=llc.mean.tolist(),
        error=llc.standard_error.tolist(),
        known=[k.llc for k in per_case],
    )
    figures = {"traces": traces} | ({"trend": llc_trend(curves)} if n > 1 else {})
    report = "\n".join([estimate_table(rows), "", *explain_cases(names, llc)]).rstrip()
    return Result(metrics, checks, figures, estimate_arrays(llc, ""), report)


EXPERIMENT = Experiment(Kgons, result)
