"""What the experiments with features in sets share: the best instance of each density, and the picture of it."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.toy.exact.best import best_of_seeds, losses
from crux.toy.exact.polish import polish
from crux.toy.exact.population import has_population_loss
from crux.toy.geometry.report import THRESHOLDS, canonical
from crux.toy.program import Trained

POLISH = {"gradient_tolerance": 1e-6, "max_iterations": 300}


class Best(NamedTuple):
    """Of each density the instance of the lowest loss."""

    W: Float[Tensor, "density n_hidden n_features"]
    """Turned and reflected to be compared."""
    loss: Float[Tensor, "density"]


def find_best(trained: Trained, run: ActiveRun, *, n_seeds: int) -> Best:
    """Return the best instance of each density: by the exact loss after polishing if there is one, else by that on held-out samples."""
    loss, W = losses(trained), trained.weights.W
    if has_population_loss(trained.program):
        name = trained.program.name
        end = polish(
            trained.program,
            trained.weights,
            **POLISH,
            compute=lambda part, compute: compute_once(run.folder, f"{name}_{part}", compute),
        )
        loss, W = end.loss, end.weights.W
    best = best_of_seeds(loss, n_seeds=n_seeds)[:, 0]
    turned = [canonical(one, living=THRESHOLDS["living"]) for one in W[best, 0].double()]
    return Best(torch.stack(turned), loss[best, 0])
