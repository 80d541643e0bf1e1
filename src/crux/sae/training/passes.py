"""The forward passes of a training batch: the SAEs, and the network without and with them."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.label_gradients import LabelGradients
from crux.sae.losses.loss import Loss
from crux.sae.losses.step import ForwardResults, Weight
from crux.sae.splicing import SaePass, build_joint_splice, run_separate_splices
from crux.sae.training.activations import Activations
from crux.subjects.subject import Clean, Spliced, Subject

Gradients = dict[str, Float[Tensor, "batch pos _d"]]


@runtime_checkable
class Passes(Protocol):
    """A way to run a kind of batch through the network and the SAEs."""

    def run(self, batch: Any, sites: Sequence[Site], *, generator: torch.Generator) -> ForwardResults:
        """Run one batch; `generator` draws labels if the loss or an SAE needs them."""
        ...


class ActivationPasses:
    """Runs the SAEs on activations that have been computed before, in any order.

    Args:
        max_norm: tokens whose activation has a larger norm are left out of the loss; in activation units.
    """

    def __init__(self, *, max_norm: float | None) -> None:
        self.max_norm = max_norm

    def run(self, batch: Activations, sites: Sequence[Site], *, generator: torch.Generator) -> ForwardResults:
        return run_on_activations(batch, sites, kept=None, max_norm=self.max_norm)


class TokenPasses:
    """Runs token sequences through the network, and through its suffix again with the SAEs if the loss needs a spliced pass.

    Batches of activations are processed as by `ActivationPasses`.

    Args:
        loss: the loss, which determines the passes that are needed and the tokens that are left out.
        sae_gradients: the gradients that the encoders use besides activations; None: they use none.
        later: hook points after the SAEs whose activations the loss compares.
        separate: whether each SAE is a separate run with its own spliced pass.
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
        self.subject, self.loss, self.sae_gradients = subject, loss, sae_gradients
        self.later, self.separate = tuple(later), separate

    def run(self, batch: Activations | Tensor, sites: Sequence[Site], *, generator: torch.Generator) -> ForwardResults:
        options = self.loss.options
        if isinstance(batch, Activations):
            return run_on_activations(batch, sites, kept=None, max_norm=options.max_norm)
        clean, sae_gradients, drawn = self._run_clean(batch, sites, generator)
        kept = kept_positions(batch, options.skip_positions)
        flat = {hook: a.flatten(0, 1) for hook, a in clean.activations.items()}
        flat_gradients = {hook: g.flatten(0, 1) for hook, g in sae_gradients.items()}
        if not self.loss.needs_spliced_pass:
            forward = run_on_activations(Activations(flat, flat_gradients), sites, kept=kept, max_norm=options.max_norm)
            return forward._replace(clean=clean, drawn=drawn)
        spliced, passed = self._run_spliced(clean, sites, sae_gradients)
        targets = [flat[site.write].to(site.sae.W_enc.dtype) for site in sites]
        weights = [counted_tokens(flat[site.read], kept, max_norm=options.max_norm) for site in sites]
        return ForwardResults(passed, targets, weights, clean, spliced, self.subject.unembed, drawn)

    def _run_clean(
        self, tokens: Int[Tensor, "batch pos"], sites: Sequence[Site], generator: torch.Generator
    ) -> tuple[Clean, Gradients, Gradients]:
        """Return the clean pass, the gradients that the SAEs use, and those of the loss's drawn labels, by hook point written."""
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
        if self.sae_gradients.target == "sampled":  # the same drawn labels serve the SAEs and the loss
            return clean, drawn, drawn
        return clean, self.sae_gradients.clean(tokens, capture=capture, generator=generator)[1], drawn

    def _run_spliced(
        self, clean: Clean, sites: Sequence[Site], sae_gradients: Gradients
    ) -> tuple[Spliced, list[SaePass]]:
        """Run a separate spliced pass for each run, or one pass with all SAEs."""
        if self.separate:
            assert not sae_gradients, "an architecture that uses gradients cannot be one of several separate runs"
            return run_separate_splices(self.subject, clean, sites, capture=self.later)
        splice, passed = build_joint_splice(sites, sides=sae_gradients)
        return self.subject.spliced(clean, splice, capture=self.later), passed


def run_on_activations(
    batch: Activations, sites: Sequence[Site], *, kept: Bool[Tensor, "tokens"] | None, max_norm: float | None
) -> ForwardResults:
    """Run each SAE on the activations that it reads; tokens may be in any order."""
    passed, targets, weights = [], [], []
    for site in sites:
        x = batch.values[site.read].to(site.sae.W_enc.dtype)
        codes = site.sae.encode(x, batch.gradients.get(site.write))
        passed.append(SaePass(x, codes, site.sae.decode(codes)))
        targets.append(batch.values[site.write].to(x.dtype))
        weights.append(counted_tokens(x, kept, max_norm=max_norm))
    return ForwardResults(passed, targets, weights)


def kept_positions(tokens: Int[Tensor, "batch pos"], skipped: Sequence[int]) -> Bool[Tensor, "tokens"] | None:
    """Return a mask that is False at the skipped positions, or None if no position is skipped."""
    if not skipped:
        return None
    kept = torch.ones_like(tokens, dtype=torch.bool)
    for position in skipped:  # indexing with a list would copy it to the device and wait
        kept[:, position] = False
    return kept.flatten()


def counted_tokens(
    x: Float[Tensor, "tokens d"], kept: Bool[Tensor, "tokens"] | None, *, max_norm: float | None
) -> Weight:
    """Return weight 1 for a token that the loss counts and 0 for one that it leaves out, or None if it counts all tokens."""
    if max_norm is not None:
        within_norm = x.norm(dim=-1) <= max_norm
        kept = within_norm if kept is None else kept & within_norm
    return None if kept is None else kept.float()
