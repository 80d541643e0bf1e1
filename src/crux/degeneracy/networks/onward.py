"""SAEs on a chain of maps, whose outputs are real numbers: local, end to end, and end to end with downstream, by the same formula."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.networks.chain import Chain
from crux.sae.architectures.site import Site
from crux.sae.losses.mse import mse
from crux.sae.training.recipe import Common
from crux.sae.training.sae_module import SAEModule


class OnwardCoefficients(NamedTuple):
    reconstruction: float
    """Of the MSE at the hook point itself."""
    output: float
    """Of the MSE between the outputs with and without the SAE, in the KL's place."""
    downstream: float
    """In all, of the MSE at hook points between: each has it divided by their number."""


class Ahead(NamedTuple):
    """The frozen chain and its places. Not an nn.Module: it never enters a checkpoint."""

    chain: Chain
    later: tuple[str, ...]
    """Hook points between the SAE and the output."""


class OnwardSAE(SAEModule):
    """reconstruction · MSE(x̂, x) + output · MSE(y(x̂), y(x)) + downstream · mean MSE at later hook points + λ · penalty; the MSEs are means
    over samples and dimensions.
    """

    def __init__(
        self, sites: Sequence[Site], *, ahead: Ahead, coefficients: OnwardCoefficients, **common: Unpack[Common]
    ) -> None:
        super().__init__(sites, **common)
        assert len(self.sites) == 1
        assert ahead.later or not coefficients.downstream, "a downstream loss needs a hook point between"
        self.ahead, self.coefficients = ahead, coefficients

    def training_step(self, batch: Float[Tensor, "1 batch n_features"], batch_idx: int) -> Float[Tensor, ""]:
        (site,), (chain, later) = self.sites, self.ahead
        share = self.coefficients
        clean = chain.clean(batch[0], capture=[site.read, *later, chain.output], final=False)
        x = clean.activations[site.read]
        weight = self.tokens_in_loss(x, None)
        codes = site.sae.encode(x)
        x_hat = site.sae.decode(codes)
        terms: dict[str, list[Tensor]] = {}
        loss = x.new_zeros(())
        if share.reconstruction > 0:
            terms["mse"] = [self.error(site.sae, x_hat, x, weight)]
            loss = loss + share.reconstruction * terms["mse"][0]
        if share.output > 0 or share.downstream > 0:
            found = chain.onward(clean, site.read, x_hat, ends=[*later, chain.output])
            errors = {end: mse(value, clean.activations[end], weight=weight) for end, value in found.items()}
            terms["output_mse"] = [errors.pop(chain.output)]
            loss = loss + share.output * terms["output_mse"][0]
            if share.downstream > 0:
                terms["downstream"] = [torch.stack(list(errors.values())).mean()]
                loss = loss + share.downstream * terms["downstream"][0]
        loss = loss + self.own_terms(0, codes, x_hat, x, weight, terms)
        return self.told(loss[None], [codes], terms).sum()
