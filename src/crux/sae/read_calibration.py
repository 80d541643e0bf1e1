"""Run the calibration of explanations and their scores (`experiment=read/calibrate`)."""

from math import inf
from pathlib import Path

import torch

from crux.config.errors import UserError
from crux.config.markdown import markdown_table
from crux.runs.experiment import no_last_row, prepare_experiment
from crux.runs.life_cycle import ActiveRun, PreparedJob, run_job
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder
from crux.sae.options import ReadCalibrationJob
from crux.sae.reading.calibration import (
    AP_TOLERANCE,
    KINDS,
    SIZES,
    TOLERANCE,
    CalibrationRow,
    CalibrationTable,
    calibrate_scores,
    made_up_text,
)
from crux.sae.reading.sanity_tests import LEAST_FALL
from crux.sae.reading.token_classes import no_classes

CONTEXT = 128
"""Tokens of a window of the made-up text."""

SOUND = ("rho", "ap")
"""The scores that must pass the sanity tests. Detection fails them, and is shown for comparison with published numbers only."""


def run(config: ReadCalibrationJob, *, folder: Path | None) -> RunFolder:
    """Run the calibration.

    Args:
        folder: the run folder, if a sweep has chosen one; None: create a new one.
    """

    def compute(active: ActiveRun) -> Result:
        options = config.calibration
        fit, held_out = (
            made_up_text(
                vocab=options.vocab, n_windows=max(2, tokens // CONTEXT), context=CONTEXT, seed=config.seed + side, order_seed=config.seed
            )
            for side, tokens in enumerate((options.fit_tokens, options.held_out_tokens))
        )  # fmt: skip
        table = calibrate_scores(fit, held_out, no_classes(options.vocab), n_each=options.each, seed=config.seed)
        missing = [kind for kind in KINDS if kind not in {row.kind for row in table.planted}]
        if missing:
            raise UserError(
                f"the text has too few tokens to plant {', '.join(missing)} latents: calibration.fit_tokens and "
                "calibration.held_out_tokens must be larger, or calibration.vocab smaller"
            )
        return calibration_result(table)

    def prepare() -> PreparedJob:
        return prepare_experiment(config, compute=compute, last_row=no_last_row, params={})

    return run_job(config, folder=folder, prepare=prepare)


def calibration_result(table: CalibrationTable) -> Result:
    """Return the table of a calibration, with its checks."""
    metrics = {f"rho_{row.kind}/{size}": row.rho[size] for row in table.planted for size in SIZES}
    metrics |= {f"ceiling_{row.kind}": row.ceiling for row in table.planted}
    metrics |= {f"rho_shifted/{size}": table.shifted.shortfall[size] for size in SIZES}
    arrays = {
        "ceiling": torch.tensor([row.ceiling for row in table.planted], dtype=torch.float64),
        "rho": torch.tensor([[row.rho[size] for size in SIZES] for row in table.planted], dtype=torch.float64),
    }
    return Result(metrics, calibration_checks(table), {}, arrays, calibration_report(table))


def calibration_checks(table: CalibrationTable) -> list[Check]:
    """Return the checks of a calibration: ceilings, the null, and the sanity tests of every score that is shown."""
    checks = [
        Check(f"{row.kind}: mean of ceiling − ρ with up to 2 rules", row.shortfall[2], -TOLERANCE, TOLERANCE)
        for row in table.planted
    ]
    checks += [
        Check(f"shifted codes: mean |ρ| with up to {size} rules", table.shifted.shortfall[size], 0, TOLERANCE)
        for size in SIZES
    ]
    ratio = table.shifted.ap[max(SIZES)] / table.shifted.density
    checks.append(Check("shifted codes: average precision / density", ratio, 1 - AP_TOLERANCE, 1 + AP_TOLERANCE))
    for row in table.sanity:
        fall = min(row.missing, row.extra)
        if row.score in SOUND:
            checks.append(Check(f"{row.score}: smallest fall in the sanity tests", fall, LEAST_FALL, inf))
        else:
            checks.append(Check(f"{row.score}: smallest fall, known to be too small", fall, -inf, LEAST_FALL))
    return checks


def calibration_report(table: CalibrationTable) -> str:
    """Return the tables of a calibration in Markdown."""
    header = [
        "latents",
        "n",
        "density",
        "ceiling ρ",
        *(f"ρ, {size} rules" for size in SIZES),
        "ρ, whole tree",
        "AP, 1 rule",
    ]
    rows = [_cells(row) for row in [*table.planted, table.shifted]]
    sanity = [
        [row.score, f"{row.missing:.5f}", f"{row.extra:.5f}", "sound" if row.sound else "fails"] for row in table.sanity
    ]
    return "\n\n".join(
        [
            "Planted explanations (means over latents; shifted: the same codes, moved against the text):",
            markdown_table(header, rows),
            "Sanity tests of the scores (Oikarinen et al. 2506.05774; fall as a share of the range, smallest over concept frequencies):",
            markdown_table(["score", "missing labels", "extra labels", f"must exceed {LEAST_FALL}"], sanity),
        ]
    )  # fmt: skip


def _cells(row: CalibrationRow) -> list[str]:
    return [
        row.kind, str(row.n_latents), f"{row.density:.4f}", f"{row.ceiling:.3f}", *(f"{row.rho[size]:.3f}" for size in SIZES),
        f"{row.tree_rho:.3f}", f"{row.ap[1]:.3f}",
    ]  # fmt: skip
