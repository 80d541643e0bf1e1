"""The learning coefficient of chosen k-gons, at several nβ side by side: λ is known (kgons.py)."""

import torch

from crux.config.schema import Config
from crux.llc.calibration import ERRORS
from crux.llc.experiments.kgons import Kgon, held, kgon_loss, polished
from crux.llc.experiments.sampling import arrays, curve, errors, estimated, explained, keys, nbetas, table, table_rows
from crux.llc.figures.llc_calibration import llc_trend
from crux.llc.figures.llc_traces import llc_traces
from crux.llc.losses import NO_DATA
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """Every estimate within three standard errors of its prediction, in the basin of its k-gon."""
    llc = keys(config)
    assert llc.corners is not None
    assert llc.plus is not None
    assert llc.chains is not None
    kgons = [Kgon(k, llc.plus, llc.features or k + llc.plus) for k in llc.corners]
    each = [kgon for kgon in kgons for _ in nbetas(llc)]
    nbeta = nbetas(llc).repeat(len(kgons))
    gamma = torch.tensor([held(k) if llc.gamma is None else llc.gamma for k in each], dtype=torch.float64)
    found = estimated(
        llc,
        kgon_loss(each, n_chains=llc.chains),
        polished(each),
        nbeta=nbeta,
        gamma=gamma,
        step_size=None,
        gradient_data=NO_DATA,
        evaluation_data=NO_DATA,
        seed=config.seed,
        free=None,
    )
    predicted, names = found.predicted.tolist(), [k.name for k in each]
    checks, metrics = [], {}
    for i, off in enumerate(errors(found, predicted)):
        where = f"{names[i]}, nβ = {float(nbeta[i]):.0e}"
        checks.append(Check(f"{where}: standard errors from the prediction", off, -ERRORS, ERRORS))
        checks.append(Check(f"{where}: left the basin", float(found.escaped[i]), 0, 0))
        metrics[f"llc/{each[i].corners}/{float(nbeta[i]):.0e}"] = float(found.mean[i])
        add_row(i + 1, {"llc": float(found.mean[i]), "standard_error": float(found.standard_error[i])})
    rows = table_rows(names, found, predicted=predicted, known=[k.llc for k in each])
    told = explained(names, found)
    n = len(nbetas(llc))
    curves = {
        kgon.name: curve(found, slice(i * n, (i + 1) * n), predicted=predicted, known=kgon.llc)
        for i, kgon in enumerate(kgons)
    }
    traces = llc_traces(
        [f"{name}, nβ = {float(nb):.0e}" for name, nb in zip(names, nbeta, strict=True)],
        found.trace.numpy(),
        mean=found.mean.tolist(),
        error=found.standard_error.tolist(),
        known=[k.llc for k in each],
    )
    figures = {"traces": traces} | ({"trend": llc_trend(curves)} if n > 1 else {})
    return Result(metrics, checks, figures, arrays(found, ""), "\n".join([table(rows), "", *told]).rstrip())
