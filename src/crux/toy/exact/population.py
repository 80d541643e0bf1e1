"""The exact loss of the instances of a program, if the model is small enough: an expectation over all data instead of a sample."""

from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.activity import (
    Activity,
    enumerate_anticorrelated,
    enumerate_correlated,
    enumerate_independent,
    enumerate_one_active,
)
from crux.toy.exact.loss import feature_moments, linear_loss, tied_loss
from crux.toy.features import FeatureDistribution
from crux.toy.options import Cooccurrence, Kind
from crux.toy.program import Program
from crux.toy.superposition import Weights

MAX_FEATURES = 8
"""Largest number of features whose activity patterns are enumerated."""


def enumerate_activity(distribution: FeatureDistribution, density: Float[Tensor, "*batch n_features"]) -> Activity:
    """Return every activity pattern of the features with its probability; `density` is that of each single feature."""
    size = density.shape[-1] // distribution.n_sets
    sets = density.unflatten(-1, (distribution.n_sets, size))
    match distribution.together:
        case Cooccurrence.independent:
            return enumerate_independent(density)
        case Cooccurrence.correlated:
            return enumerate_correlated(sets[..., 0], set_size=size)
        case Cooccurrence.anticorrelated:
            return enumerate_anticorrelated(sets.sum(-1), set_size=size)
        case Cooccurrence.one_active:
            return enumerate_one_active(density)


def has_population_loss(program: Program) -> bool:
    """Return True if `population_loss` supports the model: linear or ReLU output, few features, samples not scaled to unit norm."""
    supported = program.kind in (Kind.linear, Kind.relu_output) and not program.distribution.unit
    return supported and program.n_features <= MAX_FEATURES


def population_loss(program: Program, weights: Weights) -> Float[Tensor, "stream setting"]:
    """Return E Σ_i I_i (x_i − x'_i)² of each instance, exact in float64 and differentiable in W and b.

    The expectation is over the distribution of the features, also if the program was trained on finite data.
    """
    assert has_population_loss(program)
    W, b, importance = (v.double() for v in (weights.W, weights.b, program.importance))
    activity = enumerate_activity(program.distribution, program.density.double()[:, None])
    signed = program.distribution.signed
    if program.kind is Kind.linear:
        mean, second = feature_moments(activity, signed=signed)
        return linear_loss(W.mT @ W, b, importance=importance, mean=mean, second=second)
    return tied_loss(W, b, importance=importance, activity=activity, signed=signed)
