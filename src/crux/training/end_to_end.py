"""SAE_e2e and SAE_e2e+ds: trained against what the network computes behind it (Braun et al. 2405.12241, §2.2 and 2.3)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.losses.kl import mean_kl
from crux.losses.mse import downstream_mse, mse
from crux.saes.sae import SAE
from crux.subjects.subject import Clean, Subject
from crux.training.sae_module import Recipe, SAEModule


class Coefficients(NamedTuple):
    reconstruction: float
    """Of the MSE at the hook point itself, of normalised activations where they are; 0 in the paper."""
    kl: float
    downstream: float
    """In all: each later position has it divided by their number."""


class EndToEndSAE(SAEModule):
    """kl · KL(clean ‖ spliced) + downstream · mean MSE at later positions + λ · penalty, on token batches.

    One clean pass, one spliced pass of the suffix, one backward pass through it.

    Args:
        downstream_hooks: the later positions; none where the coefficient is 0.
        skip_positions: positions in the sequence that no term counts.
    """

    def __init__(
        self,
        sae: SAE,
        *,
        subject: Subject,
        hook: str,
        downstream_hooks: Sequence[str],
        coefficients: Coefficients,
        recipe: Recipe,
        sparsity: float,
        skip_positions: Sequence[int],
        max_norm: float | None,
    ) -> None:
        super().__init__(sae, recipe=recipe, sparsity=sparsity, max_norm=max_norm)
        self.subject = subject  # no nn.Module: it stays out of the checkpoint
        self.hook, self.downstream_hooks, self.coefficients = hook, tuple(downstream_hooks), coefficients
        self.skip_positions = list(skip_positions)

    def training_step(self, batch: Int[Tensor, "batch pos"], batch_idx: int) -> Float[Tensor, ""]:
        clean = self.subject.clean(batch, capture=(self.hook, *self.downstream_hooks))
        x = clean.activations[self.hook].flatten(0, 1).to(self.sae.W_enc.dtype)
        weight = self.tokens_in_loss(x, self._kept(batch))
        codes = self.sae.encode(x)
        reconstruction = self.sae.decode(codes)
        terms = self._terms(clean, x, reconstruction, weight)
        penalty = self.sae.penalty(codes, weight=weight)
        loss = self._total(terms) + self.sparsity * penalty + self.sae.auxiliary(x, codes)
        return self.told(loss, codes, {**terms, "sparsity": penalty})

    def _terms(self, clean: Clean, x: Tensor, reconstruction: Tensor, weight: Tensor | None) -> dict[str, Tensor]:
        def splice(activation: Tensor) -> Tensor:
            return reconstruction.view_as(activation).to(activation.dtype)

        spliced = self.subject.spliced(clean, {self.hook: splice}, capture=self.downstream_hooks)
        assert clean.final is not None
        W_U, b_U, softcap = self.subject.unembed
        terms: dict[str, Tensor] = {}
        terms["kl"] = mean_kl(
            spliced.final.flatten(0, 1), clean.final.flatten(0, 1), W_U, b_U=b_U, softcap=softcap, weight=weight
        )
        if self.downstream_hooks:
            by_position = None if weight is None else weight.view(clean.final.shape[:2])
            terms["downstream"] = downstream_mse(spliced.activations, clean.activations, weight=by_position)
        if self.coefficients.reconstruction:
            terms["mse"] = mse(reconstruction, x, weight=weight) * self.sae.input_scale**2
        return terms

    def _total(self, terms: dict[str, Tensor]) -> Tensor:
        share = {
            "kl": self.coefficients.kl,
            "downstream": self.coefficients.downstream,
            "mse": self.coefficients.reconstruction,
        }
        return torch.stack([share[name] * value for name, value in terms.items()]).sum()

    def _kept(self, tokens: Int[Tensor, "batch pos"]) -> Tensor | None:
        if not self.skip_positions:
            return None
        kept = torch.ones_like(tokens, dtype=torch.bool)
        for position in self.skip_positions:  # an index list would have to be copied to the device, which waits for it
            kept[:, position] = False
        return kept.flatten()
