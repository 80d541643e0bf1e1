"""The forward passes of a batch: the network without and with the SAEs, and the SAEs."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.label_gradients import LabelGradients
from crux.sae.losses.loss import Loss
from crux.sae.losses.step import ForwardResults, Weight
from crux.sae.splicing import SaePass, splice_each, splice_sites
from crux.sae.training.activations import Activations
from crux.subjects.subject import Clean, Spliced, Subject

Gradients = dict[str, Float[Tensor, "batch pos _d"]]


@runtime_checkable
class Passes(Protocol):
    """How a kind of batch runs through the network and the SAEs."""

    def run(self, batch: Any, sites: Sequence[Site], *, generator: torch.Generator) -> ForwardResults:
        """Run one batch; `generator` is the source of drawn labels."""
        ...


class ActivationPasses:
    """Runs the SAEs on activations in any order; the network has run before.

    Args:
        max_norm: tokens with a longer activation are left out of the loss; activation units.
    """

    def __init__(self, *, max_norm: float | None) -> None:
        self.max_norm = max_norm

    def run(self, batch: Activations, sites: Sequence[Site], *, generator: torch.Generator) -> ForwardResults:
        return run_on_activations(batch, sites, kept=None, max_norm=self.max_norm)


class TokenPasses:
    """Runs token sequences through the network once, and through its suffix again with the SAEs if the loss needs that.

    Activations among the batches run as in `ActivationPasses`.

    Args:
        loss: what says which passes are needed, and which tokens it leaves out.
        sae_gradients: the gradients that the SAEs look at besides activations; None: none.
        later: the hook points behind the SAEs whose activations the loss compares.
        separate: whether each SAE is a run of its own, with a spliced pass of its own.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        loss: Loss[Any],
        sae_gradients: LabelGradients | None,
        later: Sequence[str],
        separate: bool,
    ) -> None:
        self.subject, self.loss, self.sae_gradients, self.later, self.separate = (
            subject,
            loss,
            sae_gradients,
            tuple(later),
            separate,
        )

    def run(self, batch: Activations | Tensor, sites: Sequence[Site], *, generator: torch.Generator) -> ForwardResults:
        options = self.loss.options
        if isinstance(batch, Activations):
            return run_on_activations(batch, sites, kept=None, max_norm=options.max_norm)
        clean, sae_gradients, drawn = self._clean(batch, sites, generator)
        kept = kept_positions(batch, options.skip_positions)
        flat, flat_shown = (
            {hook: a.flatten(0, 1) for hook, a in each.items()} for each in (clean.activations, sae_gradients)
        )
        if not self.loss.needs_spliced_pass:
            forward = run_on_activations(Activations(flat, flat_shown), sites, kept=kept, max_norm=options.max_norm)
            return forward._replace(clean=clean, drawn=drawn)
        spliced, passed = self._spliced(clean, sites, sae_gradients)
        targets = [flat[site.write].to(site.sae.W_enc.dtype) for site in sites]
        weights = [counted_tokens(flat[site.read], kept, max_norm=options.max_norm) for site in sites]
        return ForwardResults(passed, targets, weights, clean, spliced, self.subject.unembed, drawn)

    def _clean(
        self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], generator: torch.Generator
    ) -> tuple[Clean, Gradients, Gradients]:
        """The clean pass; the gradients that SAEs look at, and those of the loss's drawn labels, by write hook."""
        capture = {hook for site in sites for hook in (site.read, site.write)} | set(self.later)
        if not self.loss.needs_drawn_gradients:
            if self.sae_gradients is None:
                return self.subject.clean(tokens, capture=capture), {}, {}
            clean, sae_gradients = self.sae_gradients.clean(tokens, capture=capture, generator=generator)
            return clean, sae_gradients, {}
        sampled = LabelGradients(self.subject, tuple(site.write for site in sites), "sampled")
        clean, drawn = sampled.clean(tokens, capture=capture, generator=generator)
        if self.sae_gradients is None:
            return clean, {}, drawn
        if self.sae_gradients.target == "sampled":
            return clean, drawn, drawn
        return clean, self.sae_gradients.clean(tokens, capture=capture, generator=generator)[1], drawn

    def _spliced(self, clean: Clean, sites: Sequence[Site], sae_gradients: Gradients) -> tuple[Spliced, list[SaePass]]:
        if self.separate:
            assert not sae_gradients, "an architecture that looks at gradients is no run among others"
            return splice_each(self.subject, clean, sites, capture=self.later)
        splice, passed = splice_sites(sites, sides=sae_gradients)
        return self.subject.spliced(clean, splice, capture=self.later), passed


def run_on_activations(
    batch: Activations, sites: Sequence[Site], *, kept: Bool[Tensor, "tokens"] | None, max_norm: float | None
) -> ForwardResults:
    """Run each SAE on the activations that it reads, which may be in any order."""
    passed, targets, weights = [], [], []
    for site in sites:
        x = batch.values[site.read].to(site.sae.W_enc.dtype)
        codes = site.sae.encode(x, batch.gradients.get(site.write))
        passed.append(SaePass(x, codes, site.sae.decode(codes)))
        targets.append(batch.values[site.write].to(x.dtype))
        weights.append(counted_tokens(x, kept, max_norm=max_norm))
    return ForwardResults(passed, targets, weights)


def kept_positions(tokens: Int[Tensor, "batch pos"], skipped: Sequence[int]) -> Bool[Tensor, "tokens"] | None:
    """Return False at the skipped positions, or None if there are none."""
    if not skipped:
        return None
    kept = torch.ones_like(tokens, dtype=torch.bool)
    for position in skipped:  # an index list would have to be copied to the device, which waits for it
        kept[:, position] = False
    return kept.flatten()


def counted_tokens(
    x: Float[Tensor, "tokens d"], kept: Bool[Tensor, "tokens"] | None, *, max_norm: float | None
) -> Weight:
    """Return 1 for a token that the loss counts and 0 for one that it leaves out, or None if it counts all."""
    if max_norm is not None:
        short = x.norm(dim=-1) <= max_norm
        kept = short if kept is None else kept & short
    return None if kept is None else kept.float()
