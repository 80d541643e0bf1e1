"""SAE_local: the loss that only reconstructs the activation (Braun et al. 2405.12241, §2.1)."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.options import Local
from crux.sae.losses.step import TrainingStep


class LocalLoss(Loss[Local]):
    """The loss reconstruction · MSE(x̂, x) + λ · penalty, on shuffled activations (Braun et al. 2405.12241, §2.1).

    Only the subject's prefix runs.
    """

    term_labels: ClassVar = {"mse": "MSE"}

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        return self.options.reconstruction * step.mse() + step.sparsity()
