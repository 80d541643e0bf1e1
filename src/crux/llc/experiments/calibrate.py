"""Compare estimates of known learning coefficients with their exact or predicted values at finite nβ, and with λ."""

from collections.abc import Callable

import torch

from crux.config.markdown import markdown_table
from crux.llc.calibration import (
    MAX_DEVIATION,
    MAX_ERRORS,
    CalibrationRow,
    CaseGroup,
    calibrate,
    linear_network_groups,
    monomial_groups,
    regular_groups,
)
from crux.llc.experiments.kgons import escaping_group, kgon_groups
from crux.llc.experiments.sampling import chain_checkpoint
from crux.llc.figures.llc_calibration import llc_errors, llc_trend
from crux.llc.options import Calibrate, Calibration
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

GROUPS: dict[Calibration, Callable[[], list[CaseGroup]]] = {
    Calibration.regular: regular_groups,
    Calibration.monomials: monomial_groups,
    Calibration.linear_networks: linear_network_groups,
    Calibration.kgons: kgon_groups,
    Calibration.escape: lambda: [escaping_group()],
}


def result(options: Calibrate, run: ActiveRun) -> Result:
    """Check that every estimate is within three standard errors of its prediction, and within 3 % of λ if that can be expected."""
    kept: list[CalibrationRow] = []  # all but those whose chains must escape
    checks: list[Check] = []
    rows: list[list[str]] = []
    for cases in options.cases:
        for i, group in enumerate(GROUPS[cases]()):
            checkpoint = chain_checkpoint(run, f"{cases.value}_{i}")
            for row in calibrate(group, length=options.length, seed=run.seed, checkpoint=checkpoint):
                if cases is Calibration.escape:
                    checks += escape_checks(row)
                    rows.append(table_cells(row, remark="escaped" if row.escaped else "NOT SEEN"))
                    continue
                checks += row_checks(row)
                rows.append(table_cells(row, remark="ok" if row.passed and not row.escaped else "OUTSIDE"))
                kept.append(row)
                run.add_row(len(kept), {"errors": row.errors, "off": row.deviation})
    worst_errors = max((abs(row.errors) for row in kept), default=0.0)
    worst_deviation = max((abs(r.deviation) for r in kept if r.must_be_close), default=0.0)
    metrics = {"worst_errors": worst_errors, "cases": float(len(kept)), "worst_off_where_close": worst_deviation}
    columns = {
        "mean": [r.mean for r in kept],
        "standard_error": [r.standard_error for r in kept],
        "predicted": [r.predicted for r in kept],
        "known": [r.case.llc for r in kept],
        "nbeta": [r.case.nbeta for r in kept],
    }
    arrays = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    header = ["case", "sampler", "nβ", "estimate", "predicted", "errors", "λ", "deviation from λ", "R-hat", "ESS", ""]
    return Result(metrics, checks, calibration_figures(kept), arrays, markdown_table(header, rows))


def case_name(row: CalibrationRow) -> str:
    """Return the name of a case in the checks."""
    return f"{row.case.name}, {row.sampler}, nβ = {row.case.nbeta:.0e}"


def escape_checks(row: CalibrationRow) -> list[Check]:
    """Return the checks of a case whose chains must leave the basin of w*."""
    negative = Check(f"{case_name(row)}: the estimate is negative", row.mean, -torch.inf, -3 * row.standard_error)
    return [negative, Check(f"{case_name(row)}: reported to have left the basin", row.escaped, 1, 1)]


def row_checks(row: CalibrationRow) -> list[Check]:
    """Return the checks of an ordinary case."""
    checks = [Check(f"{case_name(row)}: standard errors from the prediction", row.errors, -MAX_ERRORS, MAX_ERRORS)]
    if row.must_be_close:
        checks.append(Check(f"{case_name(row)}: share of λ from λ", row.deviation, -MAX_DEVIATION, MAX_DEVIATION))
    return [*checks, Check(f"{case_name(row)}: left the basin", row.escaped, 0, 0)]


def table_cells(row: CalibrationRow, *, remark: str) -> list[str]:
    """Return a row of the report's table; the deviation from λ is bold if it must be within 3 %."""
    deviation = f"**{row.deviation:+.1%}**" if row.must_be_close else f"{row.deviation:+.1%}"
    return [
        row.case.name, row.sampler, f"{row.case.nbeta:.0e}", f"{row.mean:.4g} ± {row.standard_error:.2g}",
        f"{row.predicted:.4g}", f"{row.errors:+.1f}", f"{row.case.llc:.4g}", deviation, f"{row.r_hat:.3f}",
        f"{row.ess:.0f}", remark,
    ]  # fmt: skip


def calibration_figures(kept: list[CalibrationRow]) -> dict:
    """Draw the differences from the predictions and, over nβ, the cases with an exact value."""
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
    curves: dict[str, list[CalibrationRow]] = {}  # the rows of each loss, at several nβ
    for row in kept:
        if row.case.expected is not None:
            curves.setdefault(row.case.name, []).append(row)
    if curves:
        drawn["trend"] = llc_trend(
            {
                name: (
                    [r.case.nbeta for r in rows],
                    [r.mean for r in rows],
                    [r.standard_error for r in rows],
                    [r.predicted for r in rows],
                    rows[0].case.llc,
                )
                for name, rows in curves.items()
            }
        )
    return drawn


EXPERIMENT = Experiment(Calibrate, result)
