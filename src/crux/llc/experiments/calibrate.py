"""Estimates of learning coefficients whose value is known: at this nβ and step size, and in the limit."""

from collections.abc import Callable

import torch

from crux.config.markdown import markdown_table
from crux.config.schema import Config
from crux.llc.calibration import ERRORS, WITHIN, Group, Row, linear_networks, monomials, regular, run
from crux.llc.experiments.kgons import escaping, kgon_groups
from crux.llc.figures.llc_calibration import llc_errors, llc_trend
from crux.llc.options import Calibration
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

GROUPS: dict[Calibration, Callable[[], list[Group]]] = {
    Calibration.regular: regular,
    Calibration.monomials: monomials,
    Calibration.linear_networks: linear_networks,
    Calibration.kgons: kgon_groups,
    Calibration.escape: lambda: [escaping()],
}


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """Every case within three standard errors of its prediction; within 3 % of λ where the prediction is within 1 % of it."""
    assert config.llc is not None
    kept: list[Row] = []
    checks, metrics = [], {}
    rows: list[list[str]] = []
    assert config.llc.cases is not None
    assert config.llc.length is not None
    for cases in config.llc.cases:
        for group in GROUPS[cases]():
            for row in run(group, length=config.llc.length, seed=config.seed):
                name = f"{row.case.name}, {row.sampler}, nβ = {row.case.nbeta:.0e}"
                if cases is Calibration.escape:
                    checks.append(
                        Check(f"{name}: the estimate is negative", row.mean, -torch.inf, -3 * row.standard_error)
                    )
                    checks.append(Check(f"{name}: said to have left the basin", row.escaped, 1, 1))
                    rows.append(cells(row, verdict="escaped" if row.escaped else "NOT SEEN"))
                    continue
                checks.append(Check(f"{name}: standard errors from the prediction", row.errors, -ERRORS, ERRORS))
                if row.must_be_close:
                    checks.append(Check(f"{name}: share of λ from λ", row.off, -WITHIN, WITHIN))
                checks.append(Check(f"{name}: left the basin", row.escaped, 0, 0))
                rows.append(cells(row, verdict="ok" if row.passed and not row.escaped else "OUTSIDE"))
                kept.append(row)
                add_row(len(kept), {"errors": row.errors, "off": row.off})
    worst = max((abs(row.errors) for row in kept), default=0.0)
    metrics |= {"worst_errors": worst, "cases": float(len(kept))}
    metrics |= {"worst_off_where_close": max((abs(r.off) for r in kept if r.must_be_close), default=0.0)}
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


def cells(row: Row, *, verdict: str) -> list[str]:
    """Return a row of the table; `errors` is in standard errors, `off` from λ, in bold if it must be within 3 %."""
    off = f"**{row.off:+.1%}**" if row.must_be_close else f"{row.off:+.1%}"
    return [
        row.case.name, row.sampler, f"{row.case.nbeta:.0e}", f"{row.mean:.4g} ± {row.standard_error:.2g}",
        f"{row.predicted:.4g}", f"{row.errors:+.1f}", f"{row.case.llc:.4g}", off, f"{row.r_hat:.3f}",
        f"{row.ess:.0f}", verdict,
    ]  # fmt: skip


def figures(kept: list[Row]) -> dict:
    """Distances from the predictions; and what converges slowly, over nβ."""
    if not kept:
        return {}
    found = {
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
        found["trend"] = llc_trend(
            {
                name: (
                    [r.case.nbeta for r in of],
                    [r.mean for r in of],
                    [r.standard_error for r in of],
                    [r.predicted for r in of],
                    of[0].case.llc,
                )
                for name, of in slow.items()
            }
        )
    return found
