"""Mean, standard error, R-hat and effective sample size of some chains, by arviz-stats."""

from typing import NamedTuple

import numpy as np
import torch
from arviz_stats.base.array import array_stats
from jaxtyping import Float
from torch import Tensor


class ChainStatistics(NamedTuple):
    """Of each case."""

    mean: Float[Tensor, "case"]
    standard_error: Float[Tensor, "case"]
    """Of the mean, by the effective sample size: not the spread of the chains."""
    r_hat: Float[Tensor, "case"]
    """Rank-normalised, split; well mixed chains are below 1.01."""
    ess: Float[Tensor, "case"]


def chain_statistics(trace: Float[Tensor, "case chain draw"]) -> ChainStatistics:
    """Return the statistics of each case's chains, of at least four draws each."""
    x = trace.double().cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):  # a trace that does not move has no R-hat: nan
        error = array_stats.mcse(x, chain_axis=1, draw_axis=2, method="mean")
        r_hat = array_stats.rhat(x, chain_axis=1, draw_axis=2)
        ess = array_stats.ess(x, chain_axis=1, draw_axis=2, method="mean")
    found = (torch.from_numpy(np.asarray(v, dtype=np.float64)) for v in (error, r_hat, ess))
    return ChainStatistics(trace.double().cpu().mean((1, 2)), *found)
