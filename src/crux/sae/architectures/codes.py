"""The output of an encoder: codes with or without their zeros, and the pre-activations."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.active_codes import ActiveCodes, ActiveIndex


class Codes:
    """The output of an encoder for a batch of tokens: all codes with their zeros, or only those that may not be zero.

    Args:
        c: the codes with their zeros; None if `active` is given.
        pre: the pre-activations, which decide whether a latent fires, before any threshold or selection. AuxK ranks dead latents by
            them. If `active` is given, they have no gradient.
        observed: a number of this batch whose running mean `SAE.observe` updates; None if the architecture has no such number.
        active: the codes without (most of) their zeros.
        gather: returns the pre-activations at the places of any index, with their gradient; needed with `active`.
        active_pre: the pre-activations at the places of `active`, with their gradient; needed with `active`.
    """

    def __init__(
        self,
        c: Float[Tensor, "tokens n_latents"] | None,
        pre: Float[Tensor, "tokens n_latents"],
        observed: Float[Tensor, ""] | None = None,
        *,
        active: ActiveCodes | None = None,
        gather: Callable[[ActiveIndex], Tensor] | None = None,
        active_pre: Float[Tensor, "nnz"] | None = None,
    ) -> None:
        assert (c is None) == (active is not None)
        self.pre, self.observed, self.active, self.active_pre = pre, observed, active, active_pre
        self._c, self._gather = c, gather

    @property
    def c(self) -> Float[Tensor, "tokens n_latents"]:
        """The codes; zero for a latent that does not fire. The zeros are added when this is first read."""
        if self._c is None:
            assert self.active is not None
            with torch.set_grad_enabled(self.active.values.requires_grad):  # whoever reads them first
                self._c = self.active.dense()
        return self._c

    def pre_at(self, index: ActiveIndex) -> Float[Tensor, "nnz"]:
        """Return the pre-activations at the places of an index, with their gradient."""
        return self.pre[index.tokens, index.latents] if self._gather is None else self._gather(index)

    def sum_of(self, function: Callable[[Tensor], Tensor]) -> Float[Tensor, "tokens"]:
        """Return the sum over latents of a function of each code that is zero at zero."""
        if self.active is None:
            return function(self.c).sum(-1)
        return self.active.places.sum_by_token(function(self.active.values))

    @torch.no_grad()
    def count_firing(self) -> tuple[Int[Tensor, "n_latents"], Int[Tensor, "tokens"]]:
        """Return the number of tokens on which each latent fires, and the number of latents that fire on each token."""
        if self.active is None:
            fires = self.c != 0
            return fires.sum(0), fires.sum(1)
        fires = self.active.values != 0
        return self.active.places.count_by_latent(fires), self.active.places.count_by_token(fires)

    @torch.no_grad()
    def largest(self) -> Float[Tensor, "n_latents"]:
        """Return the largest code of each latent."""
        if self.active is None:
            return self.c.amax(0)
        index, values = self.active
        return values.new_zeros(index.n_latents).scatter_reduce_(0, index.latents, values, "amax")
