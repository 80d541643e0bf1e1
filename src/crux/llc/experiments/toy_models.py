"""Toy models for the sampler: their training loss (exact if possible) and their outputs, for all checkpoints at once."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from crux.config.errors import UserError
from crux.llc.behavioural import Outputs
from crux.llc.losses import NO_DATA, Batch, ChainLoss, FixedData, map_over_chains
from crux.toy.exact.best import select_instance
from crux.toy.exact.loss import tied_loss
from crux.toy.exact.one_active import one_active_tied_loss
from crux.toy.exact.population import enumerate_activity
from crux.toy.features import FeatureBatches, Purpose
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program, TrainedProgram
from crux.toy.superposition import SuperpositionModel, Weights

MAX_ENUMERATED = 5
"""Largest number of features for which the loss is summed over all activity patterns, at every step of every chain."""


class TrainingLoss(NamedTuple):
    """The training loss of a toy model, and its data."""

    loss: ChainLoss
    data: FixedData
    exact: bool
    """True if the loss is the population mean in closed form."""


def instance_program(program: Program, index: int) -> Program:
    """Return the program of a single instance; in `index`, settings are the fastest axis."""
    stream, setting = divmod(index, program.importance.shape[1])
    return program._replace(
        seeds=program.seeds[stream : stream + 1],
        density=program.density[stream : stream + 1],
        importance=program.importance[stream, setting][None, None],
    )


def weights_of_instance(weights: Weights, program: Program, index: int) -> dict[str, Float[Tensor, "..."]]:
    """Return the weights of one instance by name, in float64."""
    selected = select_instance(weights, *divmod(index, program.importance.shape[1]))
    return {name: value.double() for name, value in selected._asdict().items() if value is not None}


def checkpoint_weights(trained: TrainedProgram, index: int, *, n: int) -> dict[int, dict[str, Tensor]]:
    """Return the weights of an instance at up to n of its snapshots, by step, as `spaced_steps` chooses them.

    Raises:
        UserError: if no snapshots were kept.
    """
    steps = sorted(trained.snapshots)
    if not steps:
        raise UserError(
            f"{trained.program.name}: no snapshots of its training were kept; train it with toy.snapshots=20, or more"
        )
    chosen = [steps[i] for i in spaced_steps(len(steps) - 1, n)]
    return {step: weights_of_instance(trained.snapshots[step], trained.program, index) for step in chosen}


def spaced_steps(last: int, n: int) -> list[int]:
    """Return up to n integers: 0, `last`, and others spaced ever farther apart; only `last` for n = 1."""
    if n == 1 or last == 0:
        return [last]
    powers = (round(last ** (i / max(1, n - 2))) for i in range(n - 1))  # evenly spaced exponents from 0 to 1
    return sorted({0, last, *powers})


def held_out_samples(program: Program, samples: int) -> Float[Tensor, "sample feature"]:
    """Return new data from the training distribution of one instance, or its training data if these are finite."""
    purpose = Purpose.held_out if program.points is None else Purpose.training
    data: FeatureBatches = program.data(batch=samples, n_batches=1, purpose=purpose)
    return data[0][0].double()


def toy_outputs(program: Program) -> Outputs:
    """Return the outputs x' of every chain."""
    n, m = program.n_features, program.n_hidden
    untied = torch.zeros(1, 1, n, m) if program.kind is Kind.absolute_value else None
    model = SuperpositionModel(program.kind, Weights(torch.zeros(1, 1, m, n), torch.zeros(1, 1, n), untied))

    def output(p: dict[str, Tensor], x: Batch) -> Tensor:
        return functional_call(model, {name: value[None, None] for name, value in p.items()}, (x[None],))[0, 0]

    return map_over_chains(output)


def training_loss(program: Program, *, samples: int) -> TrainingLoss:
    """Return E Σ_i I_i (y_i − y'_i)² of one instance: exact for one active feature or few features, otherwise on samples."""
    importance, density = program.importance[0, 0].double(), program.density[0].double()
    distribution = program.distribution
    exact = program.kind is Kind.relu_output and not distribution.unit and program.points is None
    if exact and distribution.together is Cooccurrence.one_active:
        probabilities = density / density.sum()

        def one_active_loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
            return one_active_tied_loss(
                p["W"], p["b"], importance=importance, probabilities=probabilities, signed=distribution.signed
            )

        return TrainingLoss(one_active_loss, NO_DATA, True)
    if exact and program.n_features <= MAX_ENUMERATED:
        patterns = enumerate_activity(distribution, density)

        def enumerated_loss(p: dict[str, Tensor], batch: Batch) -> Tensor:
            return tied_loss(p["W"], p["b"], importance=importance, activity=patterns, signed=distribution.signed)

        return TrainingLoss(enumerated_loss, NO_DATA, True)
    outputs = toy_outputs(program)

    def sample_loss(p: dict[str, Tensor], x: Batch) -> Tensor:
        target = x.abs() if program.kind is Kind.absolute_value else x
        return (outputs(p, x) - target).square() @ importance

    return TrainingLoss(sample_loss, FixedData(held_out_samples(program, samples)), False)
