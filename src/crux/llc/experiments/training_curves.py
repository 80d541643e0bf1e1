"""What the experiments along a training share: its own loss and its behaviour, at every checkpoint and nβ, in one report."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.llc.behavioural import Outputs, behavioural_loss
from crux.llc.calibration import ERRORS
from crux.llc.estimate import LLC, SHIFT
from crux.llc.experiments.sampling import (
    arrays,
    explain_cases,
    nbeta_tensor,
    sample_cases,
    standard_errors_off,
    table,
    table_rows,
)
from crux.llc.figures.llc_training import Estimates, llc_training
from crux.llc.losses import Fixed, Loss
from crux.llc.options import AlongTraining, Divergence
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

NONE = 1e-12
"""A gradient norm below this is rounding."""


class Course(NamedTuple):
    """A training, as far as its checkpoints show it."""

    checkpoints: Mapping[int, Mapping[str, Tensor]]
    """Weights of one network after some steps."""
    own: Loss
    """The loss that it trains for."""
    own_data: Fixed
    outputs: Outputs
    data: Fixed
    """What its outputs are compared on."""
    about: str
    """The report's first line."""
    loss_label: str
    max_steps: int
    """Steps of the whole training."""


def along_training(options: AlongTraining, run: ActiveRun, course: Course) -> Result:
    """Estimate at every checkpoint, all of them and all nβ as one program for each of the two losses.

    Checked: the last estimates are within three standard errors of their predictions, if the last checkpoint is a minimum.
    """
    steps, n = list(course.checkpoints), len(options.nbetas)
    nbeta = nbeta_tensor(options).repeat(len(steps))
    of_loss, of_behaviour = estimates(options, run, course, nbeta=nbeta)
    names = [f"step {step}" for step in steps for _ in range(n)]
    last = range(len(names) - n, len(names))
    curves: dict[str, Estimates] = {}
    for j, nb in enumerate(options.nbetas):
        for name, each in (("own loss", of_loss), ("behaviour", of_behaviour)):
            mean, error = each.mean[j::n].tolist(), each.standard_error[j::n].tolist()
            curves[f"{name}, nβ = {nb:.0e}"] = (steps, mean, error, trusted(each)[j::n])
    checks, metrics = [], {}
    off = standard_errors_off(of_loss, of_loss.predicted.tolist())
    for i in last:
        where = f"{float(nbeta[i]):.0e}"
        checks.append(Check(f"{names[i]}, nβ = {where}: standard errors from the prediction", off[i], -ERRORS, ERRORS))
        checks.append(Check(f"{names[i]}, nβ = {where}: not a minimum", float(of_loss.shift[i] > SHIFT), 0, 0))
        metrics |= {f"llc/{where}": float(of_loss.mean[i]), f"llc_behaviour/{where}": float(of_behaviour.mean[i])}
        metrics |= {f"gradient_norm/{where}": float(of_loss.gradient_norm[i])}
    minimal = float((of_behaviour.gradient_norm < NONE).double().mean())
    checks.append(Check("share of the checkpoints where the behavioural loss has no gradient", minimal, 1, 1))
    for i, step in enumerate(steps):
        at = (i + 1) * n - 1
        row = {"llc": float(of_loss.mean[at]), "llc_behaviour": float(of_behaviour.mean[at])}
        run.add_row(course.max_steps + 1 + i, {"step": float(step), **row})
    figure = llc_training((steps, of_loss.loss_at_start[::n].tolist()), curves, loss_label=course.loss_label)
    kept = {"steps": torch.tensor(steps), **arrays(of_loss, "own/"), **arrays(of_behaviour, "behaviour/")}
    text = report(course.about, names, of_loss, of_behaviour, last=last)
    return Result(metrics, checks, {"training": figure}, kept, text)


def estimates(
    options: AlongTraining, run: ActiveRun, course: Course, *, nbeta: Float[Tensor, "case"]
) -> tuple[LLC, LLC]:
    """Return the estimates for the network's own loss and for its behaviour, at every checkpoint and nβ."""
    params = stacked_weights(course.checkpoints, repeat=len(options.nbetas))
    gamma = torch.full_like(nbeta, options.gamma)
    behaviour = behavioural_loss(course.outputs, params, Divergence.mse)
    losses = {"own": (course.own, course.own_data), "behaviour": (behaviour, course.data)}
    own, of_behaviour = (
        sample_cases(options, run, loss, params, name=name, nbeta=nbeta, gamma=gamma, data=data)
        for name, (loss, data) in losses.items()
    )
    return own, of_behaviour


def report(about: str, names: Sequence[str], of_loss: LLC, of_behaviour: LLC, *, last: Sequence[int]) -> str:
    """Return the tables of both losses, with what there is to say about the last checkpoint."""
    nothing = [None] * len(names)
    loss_table, behaviour_table = (
        table(table_rows(names, each, predicted=each.predicted.tolist(), known=nothing))
        for each in (of_loss, of_behaviour)
    )
    lines = [about, "", "Its own loss:", "", loss_table, ""]
    lines += [*steepest(names, of_loss), *explain_cases(names, of_loss, only=last), ""]
    lines += ["Its behaviour, MSE of the outputs against the checkpoint's own:", "", behaviour_table, ""]
    return "\n".join([*lines, *explain_cases(names, of_behaviour, only=last)]).rstrip()


def stacked_weights(of: Mapping[int, Mapping[str, Tensor]], *, repeat: int) -> dict[str, Float[Tensor, "case ..."]]:
    """Return w* of each checkpoint, each `repeat` times in a row."""
    first = next(iter(of.values()))
    return {name: torch.stack([w[name] for w in of.values()]).repeat_interleave(repeat, 0) for name in first}


def trusted(llc: LLC) -> list[bool]:
    """Return whether each estimate is about a minimum, and about the one it began at."""
    return ((llc.shift <= SHIFT) & ~llc.escaped).tolist()


def steepest(names: Sequence[str], llc: LLC) -> list[str]:
    """Return how many checkpoints are no minima, and of the steepest why its number says nothing."""
    bad = (llc.shift > SHIFT).nonzero().flatten().tolist()
    if not bad:
        return []
    worst = max(bad, key=lambda i: float(llc.gradient_norm[i]))
    return [
        f"{len(bad)} of {len(names)} estimates are not at a minimum. The steepest:",
        *explain_cases(names, llc, only=[worst]),
    ]
