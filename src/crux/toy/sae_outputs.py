"""SAEs on a toy model, trained against its output: the end-to-end loss where outputs are real numbers."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.losses.mse import mse
from crux.sae.training.recipe import Common
from crux.sae.training.sae_module import SAEModule
from crux.toy.features import FeatureBatches
from crux.toy.subject import ToySubject
from crux.training.data import Activations


class OutputCoefficients(NamedTuple):
    reconstruction: float
    """Of the MSE of the hidden activation."""
    output: float
    """Of the MSE between the outputs with and without the SAE, in the KL's place."""


class OutputSAE(SAEModule):
    """reconstruction · MSE(ĥ, h) + output · MSE(y(ĥ), y(h)) + λ · penalty, on batches of features; both MSEs are means over
    samples and dimensions."""

    def __init__(
        self, sites: Sequence[Site], *, subject: ToySubject, coefficients: OutputCoefficients, **common: Unpack[Common]
    ) -> None:
        super().__init__(sites, **common)
        assert len(self.sites) == 1
        self.subject, self.coefficients = subject, coefficients

    def training_step(self, batch: Float[Tensor, "1 batch n_features"], batch_idx: int) -> Float[Tensor, ""]:
        sae = self.sites[0].sae
        with torch.no_grad():
            h = self.subject.hidden(batch[0])
            clean = self.subject.output(h)
        weight = self.tokens_in_loss(h, None)
        codes = sae.encode(h)
        h_hat = sae.decode(codes)
        terms = {"output_mse": [mse(self.subject.output(h_hat), clean, weight=weight)]}
        loss = self.coefficients.output * terms["output_mse"][0]
        if self.coefficients.reconstruction > 0:
            terms["mse"] = [self.error(sae, h_hat, h, weight)]
            loss = loss + self.coefficients.reconstruction * terms["mse"][0]
        loss = loss + self.own_terms(0, codes, h_hat, h, weight, terms)
        return self.told(loss[None], [codes], terms).sum()


class HiddenActivations(Sequence[Activations]):
    """The hidden activations of batches of features: what the local loss trains on."""

    def __init__(self, features: FeatureBatches, *, subject: ToySubject, hook: str) -> None:
        self.features, self.subject, self.hook = features, subject, hook

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> Activations:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Activations({self.hook: self.subject.hidden(self.features[i][0])}, {})
