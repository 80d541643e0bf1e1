"""Mean, standard error, R-hat and effective sample size of Markov chains, from arviz-stats."""

from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base.array import array_stats
from jaxtyping import Float
from torch import Tensor


class ChainStatistics(NamedTuple):
    """Statistics of the chains, one value per case."""

    mean: Float[Tensor, "case"]
    standard_error: Float[Tensor, "case"]
    """Standard error of the mean, from the effective sample size and not from the spread of the chains."""
    r_hat: Float[Tensor, "case"]
    """Rank-normalised split R-hat; below 1.01 for well-mixed chains."""
    ess: Float[Tensor, "case"]
    """Effective sample size for the mean."""


def chain_statistics(trace: Float[Tensor, "case chain draw"]) -> ChainStatistics:
    """Compute the statistics of each case's chains; every chain needs at least four draws."""
    x = trace.double().cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # R-hat of a constant trace is nan
        error = array_stats.mcse(x, chain_axis=1, draw_axis=2, method="mean")
        r_hat = array_stats.rhat(x, chain_axis=1, draw_axis=2)
        ess = array_stats.ess(x, chain_axis=1, draw_axis=2, method="mean")
    statistics = (torch.from_numpy(np.asarray(v, dtype=np.float64)) for v in (error, r_hat, ess))
    return ChainStatistics(trace.double().cpu().mean((1, 2)), *statistics)
