"""The best instance of each density, for the experiments with features in sets."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.toy.exact.best import best_streams, instance_losses
from crux.toy.exact.polish import polish
from crux.toy.exact.population import has_population_loss
from crux.toy.geometry.report import THRESHOLDS, orient_canonically
from crux.toy.program import TrainedProgram

POLISH = {"gradient_tolerance": 1e-6, "max_iterations": 300}


class BestInstances(NamedTuple):
    """The instance with the lowest loss of each density."""

    W: Float[Tensor, "density n_hidden n_features"]
    """In canonical orientation, so that models can be compared."""
    loss: Float[Tensor, "density"]


def find_best_instances(trained: TrainedProgram, run: ActiveRun, *, n_seeds: int) -> BestInstances:
    """Return the best instance of each density.

    It has the lowest exact loss after polishing, or the lowest loss on held-out samples if there is no exact loss.
    """
    loss, W = instance_losses(trained), trained.weights.W
    if has_population_loss(trained.program):
        name = trained.program.name
        polished = polish(
            trained.program,
            trained.weights,
            **POLISH,
            compute=lambda part, compute: compute_once(run.folder, f"{name}_{part}", compute),
        )
        loss, W = polished.loss, polished.weights.W
    best = best_streams(loss, n_seeds=n_seeds)[:, 0]  # there is one setting, number 0
    oriented = [orient_canonically(one, living=THRESHOLDS["living"]) for one in W[best, 0].double()]
    return BestInstances(torch.stack(oriented), loss[best, 0])
