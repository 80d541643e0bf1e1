"""The exact loss of a program's instances, where the model is small enough: a mean over all data, not over a sample."""

from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.activity import Activity, anticorrelated, correlated, independent, one_active
from crux.toy.exact.loss import linear_loss, second_moments, tied_loss
from crux.toy.features import FeatureDistribution
from crux.toy.options import Kind, Together
from crux.toy.program import Program
from crux.toy.superposition import Weights

LARGEST = 8
"""Features whose activity patterns can be enumerated."""


def activity(how: FeatureDistribution, density: Float[Tensor, "*batch n_features"]) -> Activity:
    """Every activity pattern of the features and its probability; `density` is each single feature's."""
    size = density.shape[-1] // how.n_sets
    sets = density.unflatten(-1, (how.n_sets, size))
    match how.together:
        case Together.independent:
            return independent(density)
        case Together.correlated:
            return correlated(sets[..., 0], set_size=size)
        case Together.anticorrelated:
            return anticorrelated(sets.sum(-1), set_size=size)
        case Together.one_active:
            return one_active(density)


def has_population_loss(program: Program) -> bool:
    """Whether `population_loss` knows the model."""
    known = program.kind in (Kind.linear, Kind.relu_output) and not program.features.unit
    return known and program.n_features <= LARGEST


def population_loss(program: Program, weights: Weights) -> Float[Tensor, "stream setting"]:
    """E Σ_i I_i (x_i − x'_i)² of each instance, exact in float64 and differentiable in W and b; fresh data, whatever it trained on."""
    assert has_population_loss(program)
    W, b, importance = (v.double() for v in (weights.W, weights.b, program.importance))
    found = activity(program.features, program.density.double()[:, None])
    signed = program.features.signed
    if program.kind is Kind.linear:
        mean, second = second_moments(found, signed=signed)
        return linear_loss(W.mT @ W, b, importance=importance, mean=mean, second=second)
    return tied_loss(W, b, importance=importance, activity=found, signed=signed)
