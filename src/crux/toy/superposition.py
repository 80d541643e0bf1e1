"""Toy models of superposition (Elhage et al. 2209.10652), many instances as one tensor program.

    linear           x' = Wᵀ W x + b
    relu_output      x' = ReLU(Wᵀ W x + b)
    relu_hidden      x' = ReLU(Wᵀ ReLU(W x) + b)         a privileged basis; no hidden bias
    absolute_value   y' = ReLU(W_out ReLU(W x) + b)      for y = |x|; weights untied, no hidden bias

W is [n_hidden, n_features]; its columns are the features' directions. With tied weights it is one parameter that is used twice.
Instances have two leading axes: `stream` numbers the sequences of data, `setting` the instances that see the data of one stream.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.toy.options import Kind


class Weights(NamedTuple):
    """The weights of one or several instances."""

    W: Float[Tensor, "*instances n_hidden n_features"]
    b: Float[Tensor, "*instances n_features"]
    W_out: Float[Tensor, "*instances n_features n_hidden"] | None
    """None if weights are tied, that is W_out = Wᵀ. The absolute-value model is untied; a hand-made network may be, too."""


class SuperpositionModel(nn.Module):
    """Instances of a toy model that are computed together."""

    def __init__(self, kind: Kind, weights: Weights) -> None:
        super().__init__()
        assert weights.W_out is not None or kind is not Kind.absolute_value
        self.kind = kind
        self.W = nn.Parameter(weights.W)
        self.b = nn.Parameter(weights.b)
        self.W_out = nn.Parameter(weights.W_out) if weights.W_out is not None else None

    @property
    def weights(self) -> Weights:
        """The current weights, without gradient."""
        W_out = self.W_out.detach() if self.W_out is not None else None
        return Weights(self.W.detach(), self.b.detach(), W_out)

    def forward(self, x: Float[Tensor, "stream batch n_features"]) -> Float[Tensor, "stream setting batch n_features"]:
        """Return the output of every instance for the data of its stream."""
        n_hidden, n_features = self.W.shape[-2:]
        tied_without_hidden_relu = self.W_out is None and self.kind in (Kind.linear, Kind.relu_output)
        if (
            tied_without_hidden_relu and n_features <= 2 * n_hidden
        ):  # multiply by WᵀW: no more work, fewer passes over memory
            # s stream, g setting, o output feature, f feature, b sample; it is faster with the samples last
            return self._add_bias(torch.einsum("sgof,sbf->sgob", self.W.mT @ self.W, x).mT)
        return self.output(self.hidden(x))

    def hidden(self, x: Float[Tensor, "stream batch n_features"]) -> Float[Tensor, "stream setting batch n_hidden"]:
        """Return the hidden activations: W x, after the ReLU if the model has a hidden one."""
        h = torch.einsum("sbf,sghf->sgbh", x, self.W)  # s stream, g setting, b sample, f feature, h hidden
        return h.relu() if self.kind in (Kind.relu_hidden, Kind.absolute_value) else h

    def output(
        self, h: Float[Tensor, "stream setting batch n_hidden"]
    ) -> Float[Tensor, "stream setting batch n_features"]:
        """Return the output for given hidden activations."""
        return self._add_bias(h @ (self.W_out.mT if self.W_out is not None else self.W))

    def _add_bias(self, pre: Tensor) -> Tensor:
        """Return the output: `pre` plus the bias, after the ReLU if the model has one."""
        pre = pre + self.b[..., None, :]
        return pre if self.kind is Kind.linear else pre.relu()

    def target(self, x: Float[Tensor, "stream batch n_features"]) -> Float[Tensor, "stream batch n_features"]:
        """Return the desired output."""
        return x.abs() if self.kind is Kind.absolute_value else x


def sampled_loss(
    model: SuperpositionModel,
    x: Float[Tensor, "stream batch n_features"],
    importance: Float[Tensor, "stream setting n_features"],
) -> Float[Tensor, "stream setting"]:
    """Return Σ_i I_i (y_i − y'_i)² of each instance, mean over the batch.

    The loss is summed over features (the paper's notebook takes their mean).
    """
    deviation = model(x) - model.target(x)[:, None]
    return (deviation.square().mean(2) * importance).sum(-1)


def weights_to_tensors(weights: Weights) -> dict[str, Tensor]:
    """Return the weights by name, for a file."""
    return {name: value.contiguous() for name, value in weights._asdict().items() if value is not None}


def weights_from_tensors(tensors: Mapping[str, Tensor]) -> Weights:
    """Return the weights that `weights_to_tensors` named."""
    return Weights(tensors["W"], tensors["b"], tensors.get("W_out"))
