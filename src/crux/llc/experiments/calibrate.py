"""Estimates of learning coefficients whose value is known: at this nβ and step size, and in the limit."""

from collections.abc import Callable

import torch

from crux.config.markdown import markdown_table
from crux.llc.calibration import ERRORS, WITHIN, Group, Row, calibrate, linear_networks, monomials, regular
from crux.llc.experiments.kgons import escaping, kgon_groups
from crux.llc.experiments.sampling import checkpoint
from crux.llc.figures.llc_calibration import llc_errors, llc_trend
from crux.llc.options import Calibrate, Calibration
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

GROUPS: dict[Calibration, Callable[[], list[Group]]] = {
    Calibration.regular: regular,
    Calibration.monomials: monomials,
    Calibration.linear_networks: linear_networks,
    Calibration.kgons: kgon_groups,
    Calibration.escape: lambda: [escaping()],
}


def result(options: Calibrate, run: ActiveRun) -> Result:
    """Check every case: within three standard errors of its prediction, and within 3 % of λ if the prediction is within 1 % of it."""
    kept: list[Row] = []
    checks: list[Check] = []
    rows: list[list[str]] = []
    for cases in options.cases:
        for i, group in enumerate(GROUPS[cases]()):
            saved = checkpoint(run, f"{cases.value}_{i}")
            for row in calibrate(group, length=options.length, seed=run.seed, checkpoint=saved):
                if cases is Calibration.escape:
                    checks += escape_checks(row)
                    rows.append(cells(row, verdict="escaped" if row.escaped else "NOT SEEN"))
                    continue
                checks += row_checks(row)
                rows.append(cells(row, verdict="ok" if row.passed and not row.escaped else "OUTSIDE"))
                kept.append(row)
                run.add_row(len(kept), {"errors": row.errors, "off": row.off})
    worst = max((abs(row.errors) for row in kept), default=0.0)
    worst_off = max((abs(r.off) for r in kept if r.must_be_close), default=0.0)
    metrics = {"worst_errors": worst, "cases": float(len(kept)), "worst_off_where_close": worst_off}
    columns = {
        "mean": [r.mean for r in kept],
        "standard_error": [r.standard_error for r in kept],
        "predicted": [r.predicted for r in kept],
        "known": [r.case.llc for r in kept],
        "nbeta": [r.case.nbeta for r in kept],
    }
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    header = ["case", "sampler", "nβ", "estimate", "predicted", "errors", "λ", "off", "R-hat", "ESS", ""]
    return Result(metrics, checks, figures(kept), arrays, markdown_table(header, rows))


def named(row: Row) -> str:
    """Return what the checks call a case."""
    return f"{row.case.name}, {row.sampler}, nβ = {row.case.nbeta:.0e}"


def escape_checks(row: Row) -> list[Check]:
    """Return the checks of a case whose chains must leave the basin."""
    low = Check(f"{named(row)}: the estimate is negative", row.mean, -torch.inf, -3 * row.standard_error)
    return [low, Check(f"{named(row)}: reported to have left the basin", row.escaped, 1, 1)]


def row_checks(row: Row) -> list[Check]:
    """Return the checks of a case that is estimated."""
    checks = [Check(f"{named(row)}: standard errors from the prediction", row.errors, -ERRORS, ERRORS)]
    if row.must_be_close:
        checks.append(Check(f"{named(row)}: share of λ from λ", row.off, -WITHIN, WITHIN))
    return [*checks, Check(f"{named(row)}: left the basin", row.escaped, 0, 0)]


def cells(row: Row, *, verdict: str) -> list[str]:
    """Return a row of the table; `errors` is in standard errors, `off` from λ, in bold if it must be within 3 %."""
    off = f"**{row.off:+.1%}**" if row.must_be_close else f"{row.off:+.1%}"
    return [
        row.case.name, row.sampler, f"{row.case.nbeta:.0e}", f"{row.mean:.4g} ± {row.standard_error:.2g}",
        f"{row.predicted:.4g}", f"{row.errors:+.1f}", f"{row.case.llc:.4g}", off, f"{row.r_hat:.3f}",
        f"{row.ess:.0f}", verdict,
    ]  # fmt: skip


def figures(kept: list[Row]) -> dict:
    """Draw the distances from the predictions, and what converges slowly, over nβ."""
    if not kept:
        return {}
    drawn = {
        "errors": llc_errors(
            [f"{r.case.name}, {r.sampler}, {r.case.nbeta:.0e}" for r in kept],
            [(r.mean - r.predicted) / r.case.llc for r in kept],
            [r.standard_error / r.case.llc for r in kept],
            passed=[r.passed for r in kept],
        )
    }
    slow: dict[str, list[Row]] = {}
    for row in kept:
        if row.case.expected is not None:
            slow.setdefault(row.case.name, []).append(row)
    if slow:
        drawn["trend"] = llc_trend(
            {
                name: (
                    [r.case.nbeta for r in rows],
                    [r.mean for r in rows],
                    [r.standard_error for r in rows],
                    [r.predicted for r in rows],
                    rows[0].case.llc,
                )
                for name, rows in slow.items()
            }
        )
    return drawn


EXPERIMENT = Experiment(Calibrate, result)
