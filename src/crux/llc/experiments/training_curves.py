"""What the experiments along a training share: its own loss and its behaviour, at every checkpoint and nβ, in one report."""

from collections.abc import Sequence

import torch
from torch import Tensor

from crux.config.schema import Config
from crux.llc.behavioural import Divergence, Outputs, behavioural_loss
from crux.llc.calibration import ERRORS
from crux.llc.estimate import LLC, SHIFT
from crux.llc.experiments.sampling import arrays, errors, estimated, explained, keys, nbetas, table, table_rows
from crux.llc.figures.llc_training import Estimates, llc_training
from crux.llc.losses import Fixed, Loss
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result

NONE = 1e-12
"""A gradient norm below this is rounding."""


def along_training(
    config: Config,
    add_row: AddRow,
    *,
    steps: Sequence[int],
    params: dict[str, Tensor],
    own: Loss,
    own_data: Fixed,
    outputs: Outputs,
    data: Fixed,
    about: str,
    loss_label: str,
) -> Result:
    """Estimates at every checkpoint, all of them and all nβ as one program for each of the two losses.

    The last estimates lie within three standard errors of their predictions, if the last checkpoint is a minimum.

    Args:
        params: of each checkpoint, each as often in a row as there are nβ.
        about: the report's first line.
    """
    llc = keys(config)
    assert llc.gamma is not None
    n, nbeta = len(nbetas(llc)), nbetas(llc).repeat(len(steps))
    gamma = torch.full_like(nbeta, llc.gamma)

    def found(loss: Loss, data: Fixed) -> LLC:
        return estimated(
            llc, loss, params, gradient_data=data, evaluation_data=data, nbeta=nbeta, gamma=gamma, step_size=None, seed=config.seed,
            free=None,
        )  # fmt: skip

    of_loss, of_behaviour = found(own, own_data), found(behavioural_loss(outputs, params, Divergence.mse), data)
    names = [f"step {step}" for step in steps for _ in range(n)]
    last = range(len(names) - n, len(names))
    curves: dict[str, Estimates] = {}
    for j, nb in enumerate(nbetas(llc).tolist()):
        for name, each in (("own loss", of_loss), ("behaviour", of_behaviour)):
            mean, error = each.mean[j::n].tolist(), each.standard_error[j::n].tolist()
            curves[f"{name}, nβ = {nb:.0e}"] = (steps, mean, error, trusted(each)[j::n])
    nothing = [None] * len(names)
    loss_table, behaviour_table = (
        table(table_rows(names, each, predicted=each.predicted.tolist(), known=nothing))
        for each in (of_loss, of_behaviour)
    )
    lines = [about, "", "Its own loss:", "", loss_table, ""]
    lines += [*first_no_minimum(names, of_loss), *explained(names, of_loss, only=last), ""]
    lines += ["Its behaviour, MSE of the outputs against the checkpoint's own:", "", behaviour_table, ""]
    lines += explained(names, of_behaviour, only=last)
    checks, metrics = [], {}
    off = errors(of_loss, of_loss.predicted.tolist())
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
        add_row(config.trainer.max_steps + 1 + i, {"step": float(step), **row})
    figure = llc_training((steps, of_loss.loss_at_start[::n].tolist()), curves, loss_label=loss_label)
    kept = {"steps": torch.tensor(steps), **arrays(of_loss, "own/"), **arrays(of_behaviour, "behaviour/")}
    return Result(metrics, checks, {"training": figure}, kept, "\n".join(lines).rstrip())


def trusted(found: LLC) -> list[bool]:
    """Whether each estimate is about a minimum, and about the one it began at."""
    return ((found.shift <= SHIFT) & ~found.escaped).tolist()


def first_no_minimum(names: Sequence[str], found: LLC) -> list[str]:
    """How many checkpoints are no minima, and of the steepest why its number says nothing."""
    bad = (found.shift > SHIFT).nonzero().flatten().tolist()
    if not bad:
        return []
    worst = max(bad, key=lambda i: float(found.gradient_norm[i]))
    return [
        f"{len(bad)} of {len(names)} estimates are not at a minimum. The steepest:",
        *explained(names, found, only=[worst]),
    ]
