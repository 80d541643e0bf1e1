"""Running sums over tokens, on the device, for all positions, for position 0 and for the other positions.

Position 0 is reported separately because the norm of its residual is often tens of times that of the others (GPT-2: about 3000
against 150). In a mean over all positions it would dominate or go unnoticed.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

SUBSETS = ("", "/pos0", "/rest")
"""Suffixes of a metric's name: all positions, position 0, every other position."""

MIN_VARIANCE_SHARE = 1e-10
"""If the variance is a smaller share of Σ‖x‖², it is rounding of float32: the activation is constant, as at position 0 if all windows
begin with the same token."""

UNDEFINED = torch.finfo(torch.float32).min
"""Stands on the device for a quotient whose denominator is zero; `to_numbers` leaves out metrics with this value. It is a finite number
that no metric has, so that metrics which are infinite or NaN are not left out: they are errors."""


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return float64 if the device has it, since sums over millions of tokens need more precision than float32."""
    return torch.float32 if device.type == "mps" else torch.float64


class TokenMeans:
    """Accumulates means of per-token quantities by name. Sums stay on the device; counts follow from the shapes."""

    def __init__(self) -> None:
        # each pair: for position 0, and for all other positions
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, name: str, values: Shaped[Tensor, "batch pos"]) -> None:
        """Add one batch of a quantity; column t belongs to position t of the input."""
        dtype = sum_dtype(values.device)
        pos0, rest = values[:, 0], values[:, 1:]
        pos0_sum, rest_sum = self._sums.get(name, (0, 0))
        n_pos0, n_rest = self._counts.get(name, (0, 0))
        self._sums[name] = (pos0.sum(dtype=dtype) + pos0_sum, rest.sum(dtype=dtype) + rest_sum)
        self._counts[name] = (n_pos0 + pos0.numel(), n_rest + rest.numel())

    def means(self) -> dict[str, Float[Tensor, ""]]:
        """Return the mean by name and suffix, for every subset that has tokens."""
        means = {}
        for name, (pos0_sum, rest_sum) in self._sums.items():
            n_pos0, n_rest = self._counts[name]
            means[name] = (pos0_sum + rest_sum) / (n_pos0 + n_rest)
            means[name + "/pos0"] = pos0_sum / n_pos0
            if n_rest:
                means[name + "/rest"] = rest_sum / n_rest
        return means


class _SubsetSums:
    """The sums Σ‖x−x̂‖², Σ(x−s) and Σ‖x−s‖² of one subset of the positions.

    The shift s is the mean of the first batch. It keeps the sums small and exact if the mean of x is far from zero.
    """

    def __init__(self, x: Float[Tensor, "tokens d"]) -> None:
        self.n, self.d = 0, x.shape[-1]
        self.dtype = sum_dtype(x.device)
        self.shift = x.mean(0)
        self.squared_error = self.shifted_squares = x.new_zeros((), dtype=self.dtype)
        self.shifted_sum = x.new_zeros(self.d, dtype=self.dtype)

    def add(self, x: Float[Tensor, "tokens d"], x_hat: Float[Tensor, "tokens d"]) -> None:
        shifted = x - self.shift
        self.n += x.shape[0]
        self.squared_error = self.squared_error + (x - x_hat).square().sum(dtype=self.dtype)
        self.shifted_sum = self.shifted_sum + shifted.sum(0, dtype=self.dtype)
        self.shifted_squares = self.shifted_squares + shifted.square().sum(dtype=self.dtype)

    @property
    def mean(self) -> Float[Tensor, "d"]:
        """The mean of x over the subset."""
        return self.shift.to(self.dtype) + self.shifted_sum / self.n

    @property
    def total(self) -> Float[Tensor, ""]:
        """Σ‖x−mean‖² about the mean of the subset itself."""
        return self.shifted_squares - self.shifted_sum.square().sum() / self.n


class ReconstructionSums:
    """Accumulates the mean squared error and the explained variance of pairs (x, x̂).

        mse = Σ‖x−x̂‖² / (n·d),    explained variance = 1 − Σ‖x−x̂‖² / Σ‖x−mean‖²

    Sums and mean are over all tokens, or all tokens of a subset; they are not means of per-batch ratios.
    """

    def __init__(self) -> None:
        self._subsets: list[_SubsetSums] = []

    def add(self, x: Float[Tensor, "batch pos d"], x_hat: Float[Tensor, "batch pos d"]) -> None:
        """Add one batch of activations and their reconstructions."""
        x, x_hat = x.float(), x_hat.float()
        pos0, rest = (x[:, 0], x_hat[:, 0]), (x[:, 1:].flatten(0, 1), x_hat[:, 1:].flatten(0, 1))
        parts = [pos0, rest] if x.shape[1] > 1 else [pos0]
        self._subsets = self._subsets or [_SubsetSums(truth) for truth, _ in parts]
        for sums, (truth, guess) in zip(self._subsets, parts, strict=True):
            sums.add(truth, guess)

    def results(self) -> dict[str, dict[str, Float[Tensor, ""]]]:
        """Return `mse` and `explained_variance` by suffix; the latter is `UNDEFINED` if x does not vary."""
        parts_of = {"": self._subsets}  # the sums over all positions are those of both subsets together
        parts_of |= {suffix: [part] for suffix, part in zip(SUBSETS[1:], self._subsets, strict=False)}
        mse, explained = {}, {}
        for suffix, parts in parts_of.items():
            n = sum(part.n for part in parts)
            mean = torch.stack([part.n * part.mean for part in parts]).sum(0) / n
            error = torch.stack([part.squared_error for part in parts]).sum()
            total = torch.stack([part.total + part.n * (part.mean - mean).square().sum() for part in parts]).sum()
            mse[suffix] = error / (n * parts[0].d)
            varies = total > MIN_VARIANCE_SHARE * (total + n * mean.square().sum())
            explained[suffix] = torch.where(varies, 1 - error / total, UNDEFINED)
        return {"mse": mse, "explained_variance": explained}
