"""SAE_e2e and SAE_e2e+ds: trained against what the network computes behind it (Braun et al. 2405.12241, §2.2 and 2.3)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import E2E, E2EDownstream
from crux.sae.losses.step import TrainingStep


class E2ELoss(Loss[E2E]):
    """kl · KL(clean ‖ spliced) + reconstruction · MSE(x̂, x) + λ · penalty, on token batches. In the paper reconstruction is 0.

    One clean pass, one spliced pass of the suffix with every SAE in place, one backward pass through it. The loss is one: what a
    later SAE reads depends on the earlier ones, and so do its own terms, whose gradient reaches these too.

    Of several runs each has a spliced pass with its own SAE alone, and a loss of its own; the clean pass and its logits serve all.
    """

    term_labels: ClassVar = {"kl": "KL (nats/token)", "mse": "MSE"}
    needs_spliced_pass = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        o = self.options
        return o.kl * step.kl() + (o.reconstruction * step.mse() if o.reconstruction else 0) + step.sparsity()


class E2EDownstreamLoss(Loss[E2EDownstream]):
    """kl · KL(clean ‖ spliced) + downstream · mean MSE at later positions + reconstruction · MSE(x̂, x) + λ · penalty.

    Passes and runs are those of `E2ELoss` (Braun et al., §2.3).
    """

    term_labels: ClassVar = {"kl": "KL (nats/token)", "downstream": "downstream MSE", "mse": "MSE"}
    needs_spliced_pass = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        o = self.options
        return (
            o.kl * step.kl()
            + (o.downstream * step.downstream() if o.downstream else 0)
            + (o.reconstruction * step.mse() if o.reconstruction else 0)
            + step.sparsity()
        )
