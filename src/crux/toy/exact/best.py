"""Select the instance with the lowest loss among seeds.

Training ends in local optima, so that several seeds are trained; Elhage et al. 2209.10652 took the best of up to 1000.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.toy.exact.population import has_population_loss, population_loss
from crux.toy.program import TrainedProgram
from crux.toy.superposition import Weights


def instance_losses(trained: TrainedProgram) -> Float[Tensor, "stream setting"]:
    """Return the loss of each instance, summed over features: exact if possible, otherwise on held-out samples."""
    exact = has_population_loss(trained.program)
    return population_loss(trained.program, trained.weights) if exact else trained.loss.double()


def best_streams(loss: Float[Tensor, "stream setting"], *, n_seeds: int) -> Int[Tensor, "density setting"]:
    """Return, for each density and setting, the index of the stream whose seed has the lowest loss.

    The streams are ordered by density, then by seed. With one setting per stream, as in most programs, column 0 is all there is.
    """
    by_seed = loss.unflatten(0, (-1, n_seeds))
    return by_seed.argmin(1) + n_seeds * torch.arange(len(by_seed))[:, None]


def select_instance(weights: Weights, stream: int, setting: int) -> Weights:
    """Return the weights of one instance."""
    W_out = weights.W_out[stream, setting] if weights.W_out is not None else None
    return Weights(weights.W[stream, setting], weights.b[stream, setting], W_out)
