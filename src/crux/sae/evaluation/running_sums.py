"""Running sums over tokens, on the device, for all positions, for position 0 and for the other positions.

Position 0 is reported separately because the norm of its residual is often tens of times that of the others (GPT-2: about 3000
against 150). In a mean over all positions it would dominate or go unnoticed.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

SUBSETS = ("", "/pos0", "/rest")
"""Suffixes of a metric's name: all positions, position 0, every other position."""

CONSTANT = 1e-10
"""A variance below this share of Σ‖x‖² is rounding of float32: the activation is constant, as at position 0 with a fixed first token."""

UNDEFINED = float("inf")
"""The value on the device of a quotient whose denominator is zero; such a metric is left out of the results."""


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return float64 if the device has it, since sums over millions of tokens need more precision than float32."""
    return torch.float32 if device.type == "mps" else torch.float64


class TokenMeans:
    """Accumulates means of per-token quantities by name. Sums stay on the device; counts follow from the shapes."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}  # of position 0 and of the rest
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, name: str, values: Shaped[Tensor, "batch pos"]) -> None:
        """Add one batch of a quantity; column t belongs to position t of the input."""
        dtype = sum_dtype(values.device)
        first, rest = values[:, 0], values[:, 1:]
        first_sum, rest_sum = self._sums.get(name, (0, 0))
        n_first, n_rest = self._counts.get(name, (0, 0))
        self._sums[name] = (first.sum(dtype=dtype) + first_sum, rest.sum(dtype=dtype) + rest_sum)
        self._counts[name] = (n_first + first.numel(), n_rest + rest.numel())

    def means(self) -> dict[str, Float[Tensor, ""]]:
        """Return the mean by name and suffix, for every subset that has tokens."""
        means = {}
        for name, (first, rest) in self._sums.items():
            n_first, n_rest = self._counts[name]
            means[name] = (first + rest) / (n_first + n_rest)
            means[name + "/pos0"] = first / n_first
            if n_rest:
                means[name + "/rest"] = rest / n_rest
        return means


class _Spread:
    """The sums Σ‖x−x̂‖², Σ(x−s) and Σ‖x−s‖² of one subset. s is the mean of its first batch, which keeps the sums small and exact."""

    def __init__(self, x: Float[Tensor, "tokens d"]) -> None:
        self.n, self.d = 0, x.shape[-1]
        self.dtype = sum_dtype(x.device)
        self.shift = x.mean(0)
        self.error = self.second = x.new_zeros((), dtype=self.dtype)
        self.first = x.new_zeros(self.d, dtype=self.dtype)

    def add(self, x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> None:
        shifted = x - self.shift
        self.n += x.shape[0]
        self.error = self.error + (x - x_hat).square().sum(dtype=self.dtype)
        self.first = self.first + shifted.sum(0, dtype=self.dtype)
        self.second = self.second + shifted.square().sum(dtype=self.dtype)

    @property
    def mean(self) -> Float[Tensor, "d"]:
        return self.shift.to(self.dtype) + self.first / self.n

    @property
    def total(self) -> Float[Tensor, ""]:
        """Σ‖x−mean‖² about the subset's own mean."""
        return self.second - self.first.square().sum() / self.n


class ReconstructionSums:
    """Accumulates the mean squared error and the explained variance of pairs (x, x̂).

        mse = Σ‖x−x̂‖² / (n·d),    explained variance = 1 − Σ‖x−x̂‖² / Σ‖x−mean‖²

    Sums and mean are over all tokens, or all tokens of a subset; they are not means of per-batch ratios.
    """

    def __init__(self) -> None:
        self._spreads: list[_Spread] = []

    def add(self, x: Float[Tensor, "batch pos d"], x_hat: Float[Tensor, "batch pos d"]) -> None:
        """Add one batch of activations and their reconstructions."""
        x, x_hat = x.float(), x_hat.float()
        first, rest = (x[:, 0], x_hat[:, 0]), (x[:, 1:].flatten(0, 1), x_hat[:, 1:].flatten(0, 1))
        parts = [first, rest] if rest[0].shape[0] else [first]
        self._spreads = self._spreads or [_Spread(truth) for truth, _ in parts]
        for spread, (truth, guess) in zip(self._spreads, parts, strict=True):
            spread.add(truth, guess)

    def results(self) -> dict[str, dict[str, Float[Tensor, ""]]]:
        """Return `mse` and `explained_variance` by suffix; the latter is `UNDEFINED` if x does not vary."""
        sets = {"": self._spreads} | {s: [part] for s, part in zip(SUBSETS[1:], self._spreads, strict=False)}
        mse, explained = {}, {}
        for suffix, parts in sets.items():
            n = sum(part.n for part in parts)
            mean = torch.stack([part.n * part.mean for part in parts]).sum(0) / n
            error = torch.stack([part.error for part in parts]).sum()
            total = torch.stack([part.total + part.n * (part.mean - mean).square().sum() for part in parts]).sum()
            mse[suffix] = error / (n * parts[0].d)
            varies = total > CONSTANT * (total + n * mean.square().sum())
            explained[suffix] = torch.where(varies, 1 - error / total, UNDEFINED)
        return {"mse": mse, "explained_variance": explained}
