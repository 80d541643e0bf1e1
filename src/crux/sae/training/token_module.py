"""What the losses share that train on token sequences."""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.training.gradients import LabelGradients
from crux.sae.training.recipe import Common
from crux.sae.training.sae_module import SAEModule
from crux.subjects.subject import Clean, Subject


class TokenPasses(NamedTuple):
    """The network that token batches run through."""

    subject: Subject
    gradients: LabelGradients | None
    """What the SAEs look at besides activations; None: nothing."""
    skip_positions: tuple[int, ...]
    """Positions in the sequence that no term counts."""


class TokenModule(SAEModule):
    """Runs the subject's clean pass on token batches."""

    def __init__(self, sites: Sequence[Site], *, passes: TokenPasses, **common: Unpack[Common]) -> None:
        super().__init__(sites, **common)
        self.passes = passes  # no nn.Modules: they stay out of the checkpoint

    def clean(
        self, tokens: Int[Tensor, "batch pos"], *, later: Sequence[str]
    ) -> tuple[Clean, dict[str, Float[Tensor, "batch pos d"]]]:
        """The clean pass with all that the SAEs read and write, and the later positions; g by hook, where an SAE looks at it."""
        capture = {hook for site in self.sites for hook in (site.read, site.write)} | set(later)
        if self.passes.gradients is None:
            return self.passes.subject.clean(tokens, capture=capture), {}
        return self.passes.gradients.clean(tokens, capture=capture, generator=self.generator)

    def kept(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "tokens"] | None:
        """False at the skipped positions; None where there are none."""
        if not self.passes.skip_positions:
            return None
        kept = torch.ones_like(tokens, dtype=torch.bool)
        for (
            position
        ) in self.passes.skip_positions:  # an index list would have to be copied to the device, which waits for it
            kept[:, position] = False
        return kept.flatten()
