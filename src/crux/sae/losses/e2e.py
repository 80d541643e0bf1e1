"""SAE_e2e and SAE_e2e+ds: losses on what the network computes after the SAE (Braun et al. 2405.12241, §2.2 and §2.3)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import E2E, E2EDownstream
from crux.sae.losses.step import TrainingStep


class E2ELoss(Loss[E2E]):
    """The loss kl · KL(clean ‖ spliced) + reconstruction · MSE(x̂, x) + λ · penalty, on token batches.

    This is SAE_e2e of Braun et al. 2405.12241, §2.2, if reconstruction is 0. It needs one clean pass, one spliced pass of the
    suffix with all SAEs in place, and one backward pass through the suffix. SAEs at several hook points share one loss: the
    input of a later SAE, and therefore its terms, depend on the earlier SAEs, which receive their gradient too.

    If a job trains several separate runs, each run has its own loss and its own spliced pass with only its SAE. The clean pass
    and its logits are computed once for all runs.
    """

    term_labels: ClassVar = {"kl": "KL (nats/token)", "mse": "MSE"}
    needs_spliced_pass = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        options = self.options
        return (
            options.kl * step.kl()
            + (options.reconstruction * step.mse() if options.reconstruction else 0)
            + step.sparsity()
        )


class E2EDownstreamLoss(Loss[E2EDownstream]):
    """The loss kl · KL(clean ‖ spliced) + downstream · mean later MSE + reconstruction · MSE(x̂, x) + λ · penalty.

    This is SAE_e2e+ds of Braun et al. 2405.12241, §2.3. The mean is over the MSEs of the activations at later hook points. Passes
    and runs are the same as in `E2ELoss`.
    """

    term_labels: ClassVar = {"kl": "KL (nats/token)", "downstream": "downstream MSE", "mse": "MSE"}
    needs_spliced_pass = True

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        options = self.options
        return (
            options.kl * step.kl()
            + (options.downstream * step.downstream() if options.downstream else 0)
            + (options.reconstruction * step.mse() if options.reconstruction else 0)
            + step.sparsity()
        )
