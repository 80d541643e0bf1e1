"""Selects the instance with the lowest loss among seeds: training ends in local optima (Elhage et al. took the best of up to 1000)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.toy.exact.population import has_population_loss, population_loss
from crux.toy.program import Trained
from crux.toy.superposition import Weights


def losses(trained: Trained) -> Float[Tensor, "stream setting"]:
    """Return the exact loss if there is one, else that on held-out samples; summed over features."""
    exact = has_population_loss(trained.program)
    return population_loss(trained.program, trained.weights) if exact else trained.loss.double()


def best_of_seeds(loss: Float[Tensor, "stream setting"], *, n_seeds: int) -> Int[Tensor, "density setting"]:
    """Return the stream of the best seed for each density and setting (seeds run fastest among the streams)."""
    by_seed = loss.unflatten(0, (-1, n_seeds))
    return by_seed.argmin(1) + n_seeds * torch.arange(len(by_seed))[:, None]


def instance(weights: Weights, stream: int, setting: int) -> Weights:
    """Return the weights of one instance."""
    W_out = weights.W_out[stream, setting] if weights.W_out is not None else None
    return Weights(weights.W[stream, setting], weights.b[stream, setting], W_out)
