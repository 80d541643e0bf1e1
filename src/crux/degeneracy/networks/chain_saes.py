"""The losses local, e2e and e2e_ds for SAEs on a chain of maps, whose outputs are real numbers instead of logits."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.networks.chain import Chain
from crux.sae.architectures.site import Site
from crux.sae.losses.loss import Loss
from crux.sae.losses.mse import mse
from crux.sae.losses.options import E2EDownstream
from crux.sae.losses.step import ForwardResults, TrainingStep
from crux.sae.splicing import SaePass
from crux.sae.training.passes import counted_tokens


class FrozenChain(NamedTuple):
    """A frozen chain and the hook points of the downstream loss. It is not an nn.Module, so that it does not enter checkpoints."""

    chain: Chain
    later: tuple[str, ...]
    """Hook points between the SAE and the output."""


class ChainPasses:
    """The forward pass of training: a clean pass of the chain, and one SAE applied to the activation that it reads."""

    def __init__(self, frozen: FrozenChain, *, max_norm: float | None) -> None:
        self.frozen, self.max_norm = frozen, max_norm

    def run(
        self, batch: Float[Tensor, "1 batch n_features"], sites: Sequence[Site], *, generator: torch.Generator
    ) -> ForwardResults:
        (site,) = sites
        chain, later = self.frozen
        clean = chain.clean(batch[0], capture=[site.read, *later, chain.output], final=False)
        x = clean.activations[site.read]
        codes = site.sae.encode(x)
        weight = counted_tokens(x, None, max_norm=self.max_norm)
        return ForwardResults([SaePass(x, codes, site.sae.decode(codes))], [x], [weight], clean)


class ChainLoss(Loss[E2EDownstream]):
    """The loss reconstruction · MSE(x̂, x) + kl · MSE(y(x̂), y(x)) + downstream · mean MSE at later hook points + λ · penalty.

    Since the outputs are real numbers, their MSE replaces the KL divergence. MSEs are means over samples and dimensions.
    """

    term_labels: ClassVar = {"mse": "MSE", "output_mse": "MSE of the output", "downstream": "downstream MSE"}

    def __init__(self, options: E2EDownstream, *, frozen: FrozenChain) -> None:
        super().__init__(options)
        assert frozen.later or not options.downstream, (
            "a downstream loss needs a hook point between the SAE and the output"
        )
        self.frozen = frozen

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        options = self.options
        loss = options.reconstruction * step.mse() if options.reconstruction else 0
        if options.kl or options.downstream:
            errors = self._measure_errors(step)
            loss = loss + options.kl * step.record("output_mse", [errors.pop(self.frozen.chain.output)])
            if options.downstream:
                downstream = torch.stack(list(errors.values())).mean()
                loss = loss + options.downstream * step.record("downstream", [downstream])
        return loss + step.sparsity()

    def _measure_errors(self, step: TrainingStep) -> dict[str, Tensor]:
        """Return the MSE at each later hook point and at the output."""
        chain, later = self.frozen
        clean = step.forward.clean
        assert clean is not None
        ((site, passed, _, weight),) = step.by_sae()  # there is one SAE
        activations = chain.continue_from(clean, site.read, passed.reconstruction, ends=[*later, chain.output])
        return {end: mse(value, clean.activations[end], weight=weight) for end, value in activations.items()}
