"""Means over the tokens of a batch, and running means over batches."""

from jaxtyping import Float
from torch import Tensor


def mean_over_tokens(values: Float[Tensor, "tokens"], weight: Float[Tensor, "tokens"] | None) -> Float[Tensor, ""]:
    """Return the mean over the tokens whose weight is 1, or over all tokens if there are no weights."""
    return values.mean() if weight is None else (values * weight).sum() / weight.sum()


def update_running_mean(
    mean: Float[Tensor, "*shape"], value: Float[Tensor, "*shape"], *, n: Tensor, at_least: float
) -> Float[Tensor, "*shape"]:
    """Return the running mean of n values after one more value.

    The new value has weight 1 / (n + 1), but never less than `at_least`, so that old values fade.
    """
    return mean + (value - mean) * (1 / (n + 1)).clamp_min(at_least)
