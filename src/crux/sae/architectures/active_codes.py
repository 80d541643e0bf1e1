"""Codes without their zeros, and products with them whose cost is the number of codes times the width.

An encoder computes the pre-activations of all latents in one dense product, and chooses the few latents of each token that are active
(`ActiveIndex`). `gather_active` takes their pre-activations out of that product, and `decode_active` sums their decoder directions. The
gradients of both are sparse, so that no other product over all latents is left. All sums run through
`torch.nn.functional.embedding_bag`: by token in the forward pass, by latent in the backward pass.
"""

import math
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_DENSITY = 1 / 20
"""Share of codes that are active up to which products are sparse. On one CPU thread, a step of d 64 to 512 then takes two thirds to
nine tenths of the time of a dense one; they break even between 1/15 and 1/10."""

GROUP = 8
"""Values of a group in `find_largest`."""


class ActiveIndex:
    """The places of the codes that are active, token by token.

    Args:
        counts: number of active latents of each token.
        latents: the active latents of the first token, then those of the second one, and so on; in any order within a token, none twice.
        n_latents: size of the dictionary.
    """

    def __init__(self, counts: Int[Tensor, "tokens"], latents: Int[Tensor, "nnz"], n_latents: int) -> None:
        self.counts, self.latents, self.n_latents = counts, latents, n_latents

    @cached_property
    def tokens(self) -> Int[Tensor, "nnz"]:
        """The token of each code, ascending."""
        return torch.repeat_interleave(self.counts, output_size=len(self.latents))

    @cached_property
    def starts(self) -> Int[Tensor, "tokens"]:
        """Place of each token's first code."""
        return self.counts.cumsum(0) - self.counts

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, "nnz"], Int[Tensor, "nnz"], Int[Tensor, "n_latents"]]:
        """The order of the codes by latent, their tokens in that order, and the place of each latent's first code."""
        order = self.latents.argsort(stable=True)
        firings = self.count_by_latent(torch.ones_like(self.latents, dtype=torch.bool))
        return order, self.tokens[order], firings.cumsum(0) - firings

    def select(self, kept: Bool[Tensor, "nnz"]) -> "ActiveIndex":
        """Return the index of some of the codes."""
        return ActiveIndex(self.count_by_token(kept), self.latents[kept], self.n_latents)

    def sum_rows(self, weights: Float[Tensor, "nnz"], rows: Float[Tensor, "n_latents d"]) -> Float[Tensor, "tokens d"]:
        """Return, for each token, the weighted sum of its latents' rows."""
        return F.embedding_bag(self.latents, rows, self.starts, mode="sum", per_sample_weights=weights)

    def sum_tokens(self, weights: Float[Tensor, "nnz"], x: Float[Tensor, "tokens d"]) -> Float[Tensor, "n_latents d"]:
        """Return, for each latent, the weighted sum of x over its tokens: the transpose of `sum_rows`."""
        order, tokens, starts = self.by_latent
        return F.embedding_bag(tokens, x, starts, mode="sum", per_sample_weights=weights[order])

    def sum_by_latent(self, values: Float[Tensor, "nnz"]) -> Float[Tensor, "n_latents"]:
        """Return the sum of each latent's values."""
        order, _, starts = self.by_latent
        return _sum_groups(values[order], starts)

    def sum_by_token(self, values: Float[Tensor, "nnz"]) -> Float[Tensor, "tokens"]:
        """Return the sum of each token's values, with its gradient."""
        return _SumByToken.apply(values, self)  # pyright: ignore[reportReturnType]

    def count_by_latent(self, kept: Bool[Tensor, "nnz"]) -> Int[Tensor, "n_latents"]:
        """Return the number of tokens at which each latent has a true value."""
        return torch.zeros(self.n_latents, dtype=torch.long, device=kept.device).index_add_(
            0, self.latents, kept.long()
        )

    def count_by_token(self, kept: Bool[Tensor, "nnz"]) -> Int[Tensor, "tokens"]:
        """Return the number of latents with a true value at each token."""
        return torch.zeros_like(self.counts).index_add_(0, self.tokens, kept.long())


class _SumByToken(torch.autograd.Function):
    """The sum of each token's values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: ActiveIndex) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.index = index
        return _sum_groups(values, index.starts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad[ctx.index.tokens], None


def _sum_groups(values: Float[Tensor, "n"], starts: Int[Tensor, "groups"]) -> Float[Tensor, "groups"]:
    """Return the sums of groups of values that follow one another, in a fixed order, which index_add has not on a GPU."""
    places = torch.arange(len(values), device=values.device)
    return F.embedding_bag(places, values[:, None], starts, mode="sum").squeeze(1)


class ActiveCodes(NamedTuple):
    """The codes of a batch of tokens at the places of an index; all others are zero, and some at these places may be, too."""

    places: ActiveIndex
    values: Float[Tensor, "nnz"]

    def dense(self) -> Float[Tensor, "tokens n_latents"]:
        """Return the codes with their zeros."""
        index = self.places
        zeros = self.values.new_zeros(len(index.counts), index.n_latents)
        return zeros.index_put((index.tokens, index.latents), self.values)

    def sorted(self) -> "ActiveCodes":
        """Return the codes that are not zero, by latent within each token."""
        order = (self.places.tokens * self.places.n_latents + self.places.latents).argsort()
        order = order[self.values[order] != 0]
        fires = torch.bincount(self.places.tokens[order], minlength=len(self.places.counts))
        return ActiveCodes(ActiveIndex(fires, self.places.latents[order], self.places.n_latents), self.values[order])


def index_chosen(latents: Int[Tensor, "tokens k"], n_latents: int) -> ActiveIndex:
    """Return the index of k chosen latents per token."""
    n_tokens, k = latents.shape
    index = ActiveIndex(torch.full((n_tokens,), k, device=latents.device), latents.flatten(), n_latents)
    index.tokens = torch.arange(n_tokens, device=latents.device).repeat_interleave(k)
    return index


def find_largest(values: Float[Tensor, "tokens n"], k: int) -> Int[Tensor, "tokens k"]:
    """Return the places of the k largest values of each token, in any order.

    On a CPU, values are first put into groups of 8: the k largest are in the k groups with the largest maxima, which hold 8 k values.
    """
    n_tokens, n = values.shape
    n_groups = n // GROUP
    if not is_on_cpu(values) or n % GROUP or n_groups < 2 * k:
        return values.topk(k, dim=-1, sorted=False).indices
    groups = values.view(n_tokens, GROUP, n_groups).amax(1).topk(k, dim=-1, sorted=False).indices
    places = (groups[:, None] + n_groups * torch.arange(GROUP)[:, None]).flatten(1)
    return places.gather(-1, values.gather(-1, places).topk(k, dim=-1, sorted=False).indices)


def index_where(active: Bool[Tensor, "tokens n_latents"]) -> ActiveIndex:
    """Return the index of the places that are true. On a GPU this waits for the device."""
    n_tokens, n_latents = active.shape
    places = _find_true(active)
    tokens = places.div(n_latents, rounding_mode="floor")
    index = ActiveIndex(torch.bincount(tokens, minlength=n_tokens), places - tokens * n_latents, n_latents)
    index.tokens = tokens
    return index


def _find_true(values: Bool[Tensor, "rows columns"]) -> Int[Tensor, "places"]:
    """Return the places of true values, counted row by row."""
    if is_on_cpu(values):  # numpy is six times as fast as torch
        return torch.from_numpy(np.flatnonzero(values.numpy()))
    return values.flatten().nonzero().squeeze(1)


def is_on_cpu(values: Tensor) -> bool:
    """Return whether reading a number does not wait for a device."""
    return values.device.type == "cpu"


def index_if_sparse(active: Bool[Tensor, "tokens n_latents"]) -> ActiveIndex | None:
    """Return the index of the places that are true, or None if there are too many for sparse products or their number is on a GPU."""
    if not is_on_cpu(active) or not is_sparse(int(np.count_nonzero(active.numpy())), active.shape):
        return None
    return index_where(active)


def is_sparse(n_active: int, shape: tuple[int, ...]) -> bool:
    """Return whether so few codes of all tokens × latents are active that sparse products are faster than dense ones."""
    return 0 < n_active <= MAX_DENSITY * math.prod(shape)


def find_active(codes: Float[Tensor, "tokens n_latents"]) -> ActiveCodes:
    """Return the codes that are not zero, by latent within each token."""
    index = index_where(codes != 0)
    return ActiveCodes(index, codes[index.tokens, index.latents])


class _Gather(torch.autograd.Function):
    """The pre-activations x W + b at the active places, out of the dense product."""

    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, index: ActiveIndex, x: Tensor, W_enc: Tensor, b_enc: Tensor | None, b_dec: Tensor | None
    ) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.index = index
        ctx.save_for_backward(x, W_enc, b_dec)
        return pre[index.tokens, index.latents]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        index, (x, W_enc, b_dec) = ctx.index, ctx.saved_tensors
        _, _, needs_x, needs_W, needs_b_enc, needs_b_dec = ctx.needs_input_grad
        grad = grad.to(x.dtype)
        by_latent = index.sum_by_latent(grad) if needs_b_enc or needs_b_dec else None
        return (
            None, None,
            index.sum_rows(grad, W_enc.T.contiguous()) if needs_x else None,
            index.sum_tokens(grad, x if b_dec is None else x - b_dec).T if needs_W else None,
            by_latent if needs_b_enc else None,
            -W_enc @ by_latent if needs_b_dec and by_latent is not None else None,
        )  # fmt: skip


def gather_active(
    pre: Float[Tensor, "tokens n_latents"],
    index: ActiveIndex,
    *,
    x: Float[Tensor, "tokens d"],
    W_enc: Float[Tensor, "d n_latents"],
    b_enc: Float[Tensor, "n_latents"] | None,
    b_dec: Float[Tensor, "d"] | None = None,
) -> Float[Tensor, "nnz"]:
    """Return the pre-activations at the places of an index, with sparse gradients to x, W_enc and the biases.

    Args:
        pre: (x − b_dec) W_enc + b_enc without a gradient; without a bias that is None.
    """
    return _Gather.apply(pre, index, x, W_enc, b_enc, b_dec)  # pyright: ignore[reportReturnType]


class _Decode(torch.autograd.Function):
    """Σ over active latents of code · w/‖w‖."""

    @staticmethod
    def forward(ctx: Any, codes: Tensor, index: ActiveIndex, W_dec: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        norms = _row_norms(W_dec)
        with torch.enable_grad():  # the gradient to the weights is each row's product with its token's gradient
            weights = (codes / norms[index.latents]).requires_grad_()
            decoded = index.sum_rows(weights, W_dec.detach())
        ctx.index, ctx.inner = index, (weights, decoded)
        ctx.save_for_backward(W_dec, norms)
        return decoded.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        index, (weights, decoded), (W_dec, norms) = ctx.index, ctx.inner, ctx.saved_tensors
        (products,) = torch.autograd.grad(decoded, weights, grad, retain_graph=True)
        to_W = None
        if ctx.needs_input_grad[2]:
            weights = weights.detach()
            along = index.sum_by_latent(products * weights) / norms.square()  # the norm's part of the gradient
            to_W = index.sum_tokens(weights, grad).addcmul_(along[:, None], W_dec, value=-1)
        return products / norms[index.latents], None, to_W


def _row_norms(W_dec: Float[Tensor, "n_latents d"]) -> Float[Tensor, "n_latents"]:
    """Return the norms of the rows, with the floor that `torch.nn.functional.normalize` has."""
    return W_dec.norm(dim=1).clamp_min_(1e-12)


def decode_active(active: ActiveCodes, W_dec: Float[Tensor, "n_latents d"]) -> Float[Tensor, "tokens d"]:
    """Return Σ over latents of code · w/‖w‖, with sparse gradients to the codes and to W_dec."""
    values = active.values.to(W_dec.dtype)
    if not torch.is_grad_enabled():
        return active.places.sum_rows(values / _row_norms(W_dec)[active.places.latents], W_dec)
    return _Decode.apply(values, active.places, W_dec)  # pyright: ignore[reportReturnType]
