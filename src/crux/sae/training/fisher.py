"""A local SAE whose error is weighed by the gradients of the network's own predictions: end-to-end without a spliced pass."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.sae import Codes
from crux.sae.architectures.site import Site
from crux.sae.losses.fisher import fisher
from crux.sae.training.gradients import LabelGradients
from crux.sae.training.recipe import Common
from crux.sae.training.token_module import TokenModule, TokenPasses


class FisherCoefficients(NamedTuple):
    reconstruction: float
    """Of the MSE."""
    fisher: float
    """Of the surrogate of the KL."""
    block_diagonal: bool
    """Whether the surrogate drops the terms between positions."""


class FisherSAE(TokenModule):
    """reconstruction · MSE + fisher · ½ (Σ_t g_t·δ_t)² / T + λ · penalty, on token batches; δ = x̂ − x.

    The labels of g are drawn from the clean predictions, anew for every batch and independently of the text. An SAE that looks
    at a gradient itself is shown the one of its own labels, which are the same draw where those are drawn too.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        passes: TokenPasses,
        coefficients: FisherCoefficients,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(sites, passes=passes, **common)
        self.coefficients = coefficients
        self.drawn = LabelGradients(passes.subject, tuple(site.write for site in sites), "sampled")

    def training_step(self, batch: Int[Tensor, "batch pos"], batch_idx: int) -> Float[Tensor, ""]:
        capture = {hook for site in self.sites for hook in (site.read, site.write)}
        clean, g = self.drawn.clean(batch, capture=capture, generator=self.generator)
        sides: dict[str, Tensor] = {}
        if self.passes.gradients is not None:
            sides = g if self.passes.gradients.target == "sampled" else self.clean(batch, later=())[1]

        kept, block_diagonal = self.kept(batch), self.coefficients.block_diagonal
        losses: list[Tensor] = []
        passed: list[Codes] = []
        terms: dict[str, list[Tensor]] = {"mse": [], "fisher": []}
        for i, site in enumerate(self.sites):
            x = clean.activations[site.read].flatten(0, 1).to(site.sae.W_enc.dtype)
            target = clean.activations[site.write].flatten(0, 1).to(x.dtype)
            weight = self.tokens_in_loss(x, kept)
            codes = site.sae.encode(x, sides[site.write].flatten(0, 1).to(x.dtype) if sides else None)
            x_hat = site.sae.decode(codes)
            terms["mse"].append(self.error(site.sae, x_hat, target, weight))
            by_position = None if weight is None else weight.view(batch.shape)
            delta = (x_hat - target).view(*batch.shape, -1)
            terms["fisher"].append(
                fisher(g[site.write].to(x.dtype), delta, block_diagonal=block_diagonal, weight=by_position)
            )
            losses.append(self.own_terms(i, codes, x_hat, target, weight, terms))
            passed.append(codes)
        loss = self.by_run(losses) + self.coefficients.reconstruction * self.by_run(terms["mse"])
        loss = loss + self.coefficients.fisher * self.by_run(terms["fisher"])
        return self.told(loss, passed, terms).sum()
