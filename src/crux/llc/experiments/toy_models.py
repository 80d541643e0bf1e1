"""Toy models under the sampler: their own loss, exact where it can be, and their outputs; of all checkpoints at once."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from crux.config.errors import UserError
from crux.llc.behavioural import Outputs
from crux.llc.losses import NO_DATA, Batch, Fixed, Loss, over_chains
from crux.toy.exact.best import instance
from crux.toy.exact.loss import tied_loss
from crux.toy.exact.one_active import one_active_tied_loss
from crux.toy.exact.population import activity
from crux.toy.features import FeatureBatches, Purpose
from crux.toy.options import Kind, Together
from crux.toy.program import Program, Trained
from crux.toy.superposition import SuperpositionModel, Weights

ENUMERATED = 5
"""Features up to which all activity patterns are gone through at every step of every chain."""


class Own(NamedTuple):
    """A model's own loss."""

    loss: Loss
    data: Fixed
    exact: bool
    """A mean over the whole population, in closed form."""


def one_of(program: Program, index: int) -> Program:
    """Return the program of one instance; settings run fastest."""
    stream, setting = divmod(index, program.importance.shape[1])
    return program._replace(
        seeds=program.seeds[stream : stream + 1],
        density=program.density[stream : stream + 1],
        importance=program.importance[stream, setting][None, None],
    )


def weights_of_instance(weights: Weights, program: Program, index: int) -> dict[str, Float[Tensor, "..."]]:
    """Return the weights of one instance by name, float64."""
    found = instance(weights, *divmod(index, program.importance.shape[1]))
    return {name: value.double() for name, value in found._asdict().items() if value is not None}


def checkpoints(trained: Trained, index: int, *, n: int) -> dict[int, dict[str, Tensor]]:
    """Return the instance's weights at up to n of its snapshots: the first, the last, and between them ever farther apart, as changes are
    rarer.

    Raises:
        UserError: if none were kept.
    """
    steps = sorted(trained.snapshots)
    if not steps:
        raise UserError(
            f"{trained.program.name}: no snapshots of its training were kept; train it with toy.snapshots=20, or more"
        )
    chosen = [steps[i] for i in thinning(len(steps) - 1, n)]
    return {step: weights_of_instance(trained.snapshots[step], trained.program, index) for step in chosen}


def thinning(last: int, n: int) -> list[int]:
    """Return up to n whole numbers: 0, `last`, and between them ever farther apart; `last` alone for n = 1."""
    if n == 1 or last == 0:
        return [last]
    return sorted({0, last, *(round(last ** (i / max(1, n - 2))) for i in range(n - 1))})


def held_out(program: Program, samples: int) -> Float[Tensor, "sample feature"]:
    """Return fresh data of the kind that one instance trains on; finite data are its own."""
    purpose = Purpose.held_out if program.points is None else Purpose.training
    data: FeatureBatches = program.data(batch=samples, n_batches=1, purpose=purpose)
    return data[0][0].double()


def outputs_of(program: Program) -> Outputs:
    """Return x' of every chain."""
    n, m = program.n_features, program.n_hidden
    untied = torch.zeros(1, 1, n, m) if program.kind is Kind.absolute_value else None
    model = SuperpositionModel(program.kind, Weights(torch.zeros(1, 1, m, n), torch.zeros(1, 1, n), untied))

    def one(p: dict[str, Tensor], x: Batch) -> Tensor:
        return functional_call(model, {name: value[None, None] for name, value in p.items()}, (x[None],))[0, 0]

    return over_chains(one)


def own_loss(program: Program, *, samples: int) -> Own:
    """Return E Σ_i I_i (y_i − y'_i)² of one instance: exact if one feature is active at a time or features are few, else on samples."""
    importance, density = program.importance[0, 0].double(), program.density[0].double()
    how = program.features
    exact = program.kind is Kind.relu_output and not how.unit and program.points is None
    if exact and how.together is Together.one_active:
        often = density / density.sum()

        def closed(p: dict[str, Tensor], batch: Batch) -> Tensor:
            return one_active_tied_loss(p["W"], p["b"], importance=importance, probabilities=often, signed=how.signed)

        return Own(closed, NO_DATA, True)
    if exact and program.n_features <= ENUMERATED:
        patterns = activity(how, density)

        def enumerated(p: dict[str, Tensor], batch: Batch) -> Tensor:
            return tied_loss(p["W"], p["b"], importance=importance, activity=patterns, signed=how.signed)

        return Own(enumerated, NO_DATA, True)
    outputs = outputs_of(program)

    def sampled(p: dict[str, Tensor], x: Batch) -> Tensor:
        target = x.abs() if program.kind is Kind.absolute_value else x
        return (outputs(p, x) - target).square() @ importance

    return Own(sampled, Fixed(held_out(program, samples)), False)
