"""Shared parts of the experiments along a training run: estimates for the training loss and the behavioural loss, and their report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.behavioural import Outputs, behavioural_loss
from crux.llc.calibration import MAX_ERRORS
from crux.llc.estimate import LLC, MAX_SHIFT
from crux.llc.experiments.sampling import (
    errors_from_prediction,
    estimate_arrays,
    estimate_rows,
    estimate_table,
    explain_cases,
    nbeta_tensor,
    sample_cases,
)
from crux.llc.figures.llc_training import Estimates, llc_training
from crux.llc.losses import ChainLoss, FixedData
from crux.llc.options import AlongTraining, Divergence
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

ZERO_GRADIENT = 1e-12
"""Gradient norms below this are rounding errors."""


class TrainingCourse(NamedTuple):
    """A training run: its checkpoints, losses and data."""

    checkpoints: Mapping[int, Mapping[str, Tensor]]
    """Weights of the network by number of steps."""
    training_loss: ChainLoss
    """The loss for which the network is trained."""
    training_data: FixedData
    """Data of the training loss."""
    outputs: Outputs
    data: FixedData
    """Data on which the behavioural loss compares outputs."""
    about: str
    """First line of the report."""
    loss_label: str
    max_steps: int
    """Steps of the complete training."""


def estimate_along_training(options: AlongTraining, run: ActiveRun, course: TrainingCourse) -> Result:
    """Estimate at every checkpoint and nβ, in one batch for each of the two losses, and make the report.

    The checks require that the last checkpoint is a minimum and that its estimates are within three standard errors of their predictions.
    """
    steps, n = list(course.checkpoints), len(options.nbetas)
    nbeta = nbeta_tensor(options).repeat(len(steps))  # the cases: all nβ at the first checkpoint, then at the second, …
    loss_llc, behaviour_llc = estimate_checkpoints(options, run, course, nbeta=nbeta)
    names = [f"step {step}" for step in steps for _ in range(n)]
    last = range(len(names) - n, len(names))
    curves: dict[str, Estimates] = {}
    for j, nb in enumerate(options.nbetas):
        for name, estimate in (("training loss", loss_llc), ("behaviour", behaviour_llc)):
            mean, error = estimate.mean[j::n].tolist(), estimate.standard_error[j::n].tolist()
            curves[f"{name}, nβ = {nb:.0e}"] = (steps, mean, error, at_minimum(estimate)[j::n])
    checks, metrics = [], {}
    errors = errors_from_prediction(loss_llc, loss_llc.predicted.tolist())
    for i in last:
        where = f"{float(nbeta[i]):.0e}"
        checks.append(
            Check(f"{names[i]}, nβ = {where}: standard errors from the prediction", errors[i], -MAX_ERRORS, MAX_ERRORS)
        )
        checks.append(Check(f"{names[i]}, nβ = {where}: not a minimum", float(loss_llc.shift[i] > MAX_SHIFT), 0, 0))
        metrics |= {f"llc/{where}": float(loss_llc.mean[i]), f"llc_behaviour/{where}": float(behaviour_llc.mean[i])}
        metrics |= {f"gradient_norm/{where}": float(loss_llc.gradient_norm[i])}
    minimal = float((behaviour_llc.gradient_norm < ZERO_GRADIENT).double().mean())
    checks.append(Check("share of checkpoints at which the behavioural loss has zero gradient", minimal, 1, 1))
    for i, step in enumerate(steps):
        last_case = (i + 1) * n - 1
        row = {"llc": float(loss_llc.mean[last_case]), "llc_behaviour": float(behaviour_llc.mean[last_case])}
        run.add_row(course.max_steps + 1 + i, {"step": float(step), **row})
    figure = llc_training((steps, loss_llc.loss_at_start[::n].tolist()), curves, loss_label=course.loss_label)
    arrays = {
        "steps": torch.tensor(steps),
        **estimate_arrays(loss_llc, "own/"),
        **estimate_arrays(behaviour_llc, "behaviour/"),
    }
    text = training_report(course.about, names, loss_llc, behaviour_llc, last=last)
    return Result(metrics, checks, {"training": figure}, arrays, text)


def estimate_checkpoints(
    options: AlongTraining, run: ActiveRun, course: TrainingCourse, *, nbeta: Float[Tensor, "case"]
) -> tuple[LLC, LLC]:
    """Estimate for the training loss and for the behavioural loss, at every checkpoint and nβ."""
    params = stack_checkpoints(course.checkpoints, repeat=len(options.nbetas))
    gamma = torch.full_like(nbeta, options.gamma)
    behaviour = behavioural_loss(course.outputs, params, Divergence.mse)
    losses = {"own": (course.training_loss, course.training_data), "behaviour": (behaviour, course.data)}
    loss_llc, behaviour_llc = (
        sample_cases(options, run, loss, params, name=name, nbeta=nbeta, gamma=gamma, data=data)
        for name, (loss, data) in losses.items()
    )
    return loss_llc, behaviour_llc


def training_report(about: str, names: Sequence[str], loss_llc: LLC, behaviour_llc: LLC, *, last: Sequence[int]) -> str:
    """Return the report: a table per loss, with explanations for the last checkpoint."""
    unknown = [None] * len(names)
    loss_table, behaviour_table = (
        estimate_table(estimate_rows(names, estimate, predicted=estimate.predicted.tolist(), known=unknown))
        for estimate in (loss_llc, behaviour_llc)
    )
    lines = [about, "", "Training loss:", "", loss_table, ""]
    lines += [*explain_steepest(names, loss_llc), *explain_cases(names, loss_llc, only=last), ""]
    lines += ["Behavioural loss, MSE between the outputs and those of the checkpoint:", "", behaviour_table, ""]
    return "\n".join([*lines, *explain_cases(names, behaviour_llc, only=last)]).rstrip()


def stack_checkpoints(
    checkpoints: Mapping[int, Mapping[str, Tensor]], *, repeat: int
) -> dict[str, Float[Tensor, "case ..."]]:
    """Stack the weights of all checkpoints, each repeated `repeat` times."""
    first = next(iter(checkpoints.values()))
    return {name: torch.stack([w[name] for w in checkpoints.values()]).repeat_interleave(repeat, 0) for name in first}


def at_minimum(llc: LLC) -> list[bool]:
    """Return True for each estimate whose w* is a minimum and whose chains did not leave its basin."""
    return ((llc.shift <= MAX_SHIFT) & ~llc.escaped).tolist()


def explain_steepest(names: Sequence[str], llc: LLC) -> list[str]:
    """Return the number of estimates that are not at a minimum, and explain the one with the largest gradient."""
    not_minima = (llc.shift > MAX_SHIFT).nonzero().flatten().tolist()
    if not not_minima:
        return []
    worst = max(not_minima, key=lambda i: float(llc.gradient_norm[i]))
    return [
        f"{len(not_minima)} of {len(names)} estimates are not at a minimum. The one with the largest gradient:",
        *explain_cases(names, llc, only=[worst]),
    ]
