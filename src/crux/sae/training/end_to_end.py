"""SAE_e2e and SAE_e2e+ds: trained against what the network computes behind it (Braun et al. 2405.12241, §2.2 and 2.3)."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.losses.kl import mean_kl
from crux.sae.losses.mse import downstream_mse
from crux.sae.splicing import Passed, splice_each, splice_sites
from crux.sae.training.recipe import Common
from crux.sae.training.token_module import TokenModule, TokenPasses
from crux.subjects.subject import Clean

Weight = Float[Tensor, "tokens"] | None


class Coefficients(NamedTuple):
    reconstruction: float
    """Of the MSE at the hook points themselves, of normalised activations where they are; 0 in the paper."""
    kl: float
    downstream: float
    """In all: each later position has it divided by their number."""


class Step(NamedTuple):
    """One clean pass, and one spliced pass a run."""

    passed: list[Passed]
    """What went through each SAE."""
    targets: list[Float[Tensor, "tokens d"]]
    """The clean activations that each reconstructs."""
    weights: list[Weight]
    terms: dict[str, list[Tensor]]
    """`kl` and, with later positions, `downstream`, by run; `mse` by SAE where asked for."""


class EndToEndSAE(TokenModule):
    """kl · KL(clean ‖ spliced) + downstream · mean MSE at later positions + λ · penalty, on token batches.

    One clean pass, one spliced pass of the suffix with every SAE in place, one backward pass through it. The loss is one: what a
    later SAE reads depends on the earlier ones, and so do its own terms, whose gradient reaches these too.

    Of several runs each has a spliced pass with its own SAE alone, and a loss of its own; the clean pass and its logits serve all.

    Args:
        downstream_hooks: the later positions; none where the coefficient is 0.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        passes: TokenPasses,
        downstream_hooks: Sequence[str],
        coefficients: Coefficients,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(sites, passes=passes, **common)
        self.downstream_hooks, self.coefficients = tuple(downstream_hooks), coefficients

    def training_step(self, batch: Int[Tensor, "batch pos"], batch_idx: int) -> Float[Tensor, ""]:
        step = self.step(batch, errors=self.coefficients.reconstruction > 0)
        share = self.coefficients._asdict() | {"mse": self.coefficients.reconstruction}
        loss = torch.stack([share[name] * self.by_run(values) for name, values in step.terms.items()]).sum(0)
        return self.finished(loss, step)

    def step(self, batch: Int[Tensor, "batch pos"], *, errors: bool) -> Step:
        """Both passes and their terms; `errors`: the MSE at the hook points too."""
        clean, sides = self.clean(batch, later=self.downstream_hooks)
        subject, later = self.passes.subject, self.downstream_hooks
        if self.runs:
            assert not sides, "an architecture that looks at gradients is no run beside others"
            spliced, passed = splice_each(subject, clean, self.sites, capture=later)
        else:
            splice, passed = splice_sites(self.sites, sides=sides)
            spliced = subject.spliced(clean, splice, capture=later)
        assert clean.final is not None

        weights = self._weights(clean, batch)
        everywhere = None if weights[0] is None else torch.stack([w for w in weights if w is not None]).prod(0)
        W_U, b_U, softcap = subject.unembed
        truth = clean.final.flatten(0, 1)
        finals = spliced.final.view(-1, *truth.shape)  # one a run
        terms = {"kl": list(mean_kl(finals, truth, W_U, b_U=b_U, softcap=softcap, weight=everywhere))}
        if later:
            by_position = None if everywhere is None else everywhere.view(batch.shape)
            terms["downstream"] = []
            for first in range(0, len(spliced.final), len(batch)):
                one = {hook: value[first : first + len(batch)] for hook, value in spliced.activations.items()}
                terms["downstream"].append(downstream_mse(one, clean.activations, weight=by_position))

        targets = [clean.activations[s.write].flatten(0, 1).to(s.sae.W_enc.dtype) for s in self.sites]
        if errors:
            terms["mse"] = [
                self.error(site.sae, p.reconstruction, target, weight)
                for site, p, target, weight in zip(self.sites, passed, targets, weights, strict=True)
            ]
        return Step(passed, targets, weights, terms)

    def finished(self, loss: Float[Tensor, "runs"], step: Step) -> Float[Tensor, ""]:
        """The loss with each SAE's own terms, told."""
        rows = zip(step.passed, step.targets, step.weights, strict=True)
        own = [
            self.own_terms(i, p.codes, p.reconstruction, target, weight, step.terms)
            for i, (p, target, weight) in enumerate(rows)
        ]
        return self.told(loss + self.by_run(own), [p.codes for p in step.passed], step.terms).sum()

    def _weights(self, clean: Clean, tokens: Tensor) -> list[Weight]:
        """By SAE: the clean activation decides what is left out."""
        kept = self.kept(tokens)
        return [self.tokens_in_loss(clean.activations[site.read].flatten(0, 1), kept) for site in self.sites]
