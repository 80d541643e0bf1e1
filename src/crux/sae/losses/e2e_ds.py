"""SAE_e2e+ds: trained against the network's predictions and its later activations (Braun et al. 2405.12241, §2.3)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import E2EDownstream
from crux.sae.losses.step import Step


class E2EDownstreamLoss(Loss[E2EDownstream]):
    """kl · KL(clean ‖ spliced) + downstream · mean MSE at later positions + reconstruction · MSE(x̂, x) + λ · penalty.

    Passes and runs are those of `E2ELoss`.
    """

    labels: ClassVar = {"kl": "KL (nats/token)", "downstream": "downstream MSE", "mse": "MSE"}
    needs_spliced_pass = True

    def __call__(self, step: Step) -> Float[Tensor, "runs"]:
        o = self.options
        return (
            o.kl * step.kl()
            + (o.downstream * step.downstream() if o.downstream else 0)
            + (o.reconstruction * step.mse() if o.reconstruction else 0)
            + step.sparsity()
        )
