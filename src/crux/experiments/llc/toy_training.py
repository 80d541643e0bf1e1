"""The learning coefficient along the training of a toy model: at checkpoints, for its own loss and for its behaviour.

Away from a minimum the coefficient of the model's own loss says nothing, and is said to; that of the behavioural loss, which counts the
directions in which outputs change, is defined at every checkpoint.
"""

from pathlib import Path

import torch
from torch import Tensor

from crux.degeneracy.behavioural import Divergence, behavioural_loss
from crux.degeneracy.calibration import ERRORS
from crux.degeneracy.llc import LLC, SHIFT
from crux.degeneracy.losses import Fixed
from crux.experiments.llc.sampling import HEAD, arrays, errors, estimated, explained, keys, nbetas, table
from crux.experiments.llc.toy_models import checkpoints, held_out, one_of, outputs_of, own_loss, stacked_weights
from crux.experiments.result import Check, Result
from crux.experiments.run import AddRow
from crux.experiments.toy.programs import over_densities
from crux.experiments.toy.training import train
from crux.figures.llc_training import Estimates, llc_training
from crux.schema import Config
from crux.subjects.toy_folder import toy_folder
from crux.toy.best import losses
from crux.toy.program import Trained, load
from crux.tracking.run_folder import RunFolder
from crux.training.fit import checkpoint_step

PROGRAM = "model"
"""Folder of the model that the experiment trains itself."""


def last_row(job: RunFolder) -> int:
    """The rows of a training that is done, or of the part that its checkpoint holds."""
    folder = job.programs / PROGRAM
    if (folder / "model.safetensors").exists():
        return int(job.config()["trainer"]["max_steps"])
    return checkpoint_step(folder / "checkpoints" / "last.ckpt")


def toy_model(config: Config, job: RunFolder, add_row: AddRow) -> tuple[Trained, int]:
    """The model of model.path, or one that is trained here; and which of its instances, the best one where that is not said.

    Raises:
        ValueError: where the folder holds no toy model, or not that instance.
    """
    if config.model.path is not None:
        folder = toy_folder(Path(config.model.path))
        if folder is None:
            raise ValueError(f"model.path={config.model.path}: must be the run folder of a toy experiment")
        found = load(folder)
    else:
        found = train(over_densities(config), config, folder=job.programs / PROGRAM, add_row=add_row)
    n = found.program.importance.shape[:2].numel()
    index = int(losses(found).flatten().argmin()) if config.model.instance is None else config.model.instance
    if not 0 <= index < n:
        raise ValueError(f"model.instance={index}: the model has {n}, 0 to {n - 1}")
    return found, index


def trusted(found: LLC) -> list[bool]:
    """Whether each estimate is about a minimum, and about the one it began at."""
    return ((found.shift <= SHIFT) & ~found.escaped).tolist()


def first_no_minimum(names: list[str], found: LLC) -> list[str]:
    """How many checkpoints are no minima, and of the worst of them why its number says nothing."""
    bad = (found.shift > SHIFT).nonzero().flatten().tolist()
    if not bad:
        return []
    worst = max(bad, key=lambda i: float(found.gradient_norm[i]))
    return [
        f"{len(bad)} of {len(names)} estimates are not at a minimum. The steepest:",
        *explained(names, found, only=[worst]),
    ]


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """The last checkpoint's estimate within three standard errors of its prediction; the curves are the finding."""
    llc = keys(config)
    assert llc.checkpoints is not None
    assert llc.samples is not None
    assert llc.gamma is not None
    model, index = toy_model(config, job, add_row)
    program, kept = one_of(model.program, index), checkpoints(model, index, n=llc.checkpoints)
    nbeta, steps = nbetas(llc), list(kept)
    n = len(nbeta)
    params, every_nbeta = stacked_weights(kept, repeat=n), nbeta.repeat(len(steps))
    own = own_loss(program, samples=llc.samples)
    data = Fixed(held_out(program, llc.samples))
    shared = {
        "nbeta": every_nbeta, "gamma": torch.full_like(every_nbeta, llc.gamma), "step_size": None, "seed": config.seed, "free": None,
    }  # fmt: skip
    of_loss = estimated(llc, own.loss, params, gradient_data=own.data, evaluation_data=own.data, **shared)
    behaves = behavioural_loss(outputs_of(program), params, Divergence.mse)
    of_behaviour = estimated(llc, behaves, params, gradient_data=data, evaluation_data=data, **shared)

    curves: dict[str, Estimates] = {}
    for j, nb in enumerate(nbeta.tolist()):
        for name, found in (("own loss", of_loss), ("behaviour", of_behaviour)):
            mean, error = found.mean[j::n].tolist(), found.standard_error[j::n].tolist()
            curves[f"{name}, nβ = {nb:.0e}"] = (steps, mean, error, trusted(found)[j::n])
    names = [f"step {step}" for step in steps for _ in range(n)]
    last = range(len(names) - n, len(names))
    lines = [
        f"instance {index} of {model.program.name}; its loss is {'exact' if own.exact else f'that on {llc.samples} samples'}",
        "", "Its own loss:", "", *HEAD,
        *table(names, of_loss, predicted=of_loss.predicted.tolist(), known=[None] * len(names)), "",
        *first_no_minimum(names, of_loss), *explained(names, of_loss, only=last), "",
        "Its behaviour, MSE of the outputs against the checkpoint's own:", "", *HEAD,
        *table(names, of_behaviour, predicted=of_behaviour.predicted.tolist(), known=[None] * len(names)), "",
        *explained(names, of_behaviour, only=last),
    ]  # fmt: skip
    off = errors(of_loss, of_loss.predicted.tolist())
    checks = [
        Check(
            f"{names[i]}, nβ = {float(every_nbeta[i]):.0e}: standard errors from the prediction",
            off[i],
            -ERRORS,
            ERRORS,
        )
        for i in last
    ]
    checks.append(
        Check(
            "checkpoints whose behavioural gradient is zero",
            float((of_behaviour.gradient_norm < 1e-12).double().mean()),
            1,
            1,
        )
    )
    metrics = {f"llc/{float(every_nbeta[i]):.0e}": float(of_loss.mean[i]) for i in last}
    metrics |= {f"llc_behaviour/{float(every_nbeta[i]):.0e}": float(of_behaviour.mean[i]) for i in last}
    for i, step in enumerate(steps):
        row = {"llc": float(of_loss.mean[(i + 1) * n - 1]), "llc_behaviour": float(of_behaviour.mean[(i + 1) * n - 1])}
        add_row(config.trainer.max_steps + 1 + i, {"step": float(step), **row})
    loss = of_loss.loss_at_start[::n]
    figures = {
        "training": llc_training(
            (steps, loss.tolist()), curves, loss_label="loss, exact" if own.exact else "loss on the samples", levels={}
        )
    }
    found_arrays: dict[str, Tensor] = {
        "steps": torch.tensor(steps),
        **arrays(of_loss, "own/"),
        **arrays(of_behaviour, "behaviour/"),
    }
    return Result(metrics, checks, figures, found_arrays, "\n".join(lines))
