"""The loss of the example plug-in."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.loss import Loss
from crux.sae.losses.step import TrainingStep
from crux_example.options import Absolute


class AbsoluteLoss(Loss[Absolute]):
    """The mean absolute error of the reconstruction: scale · mean |x̂ − x| + λ · penalty."""

    term_labels: ClassVar = {"absolute": "mean absolute error"}

    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        errors = [(passed.reconstruction - target).abs().mean() for _, passed, target, _ in step.by_sae()]
        return self.options.scale * step.record("absolute", errors) + step.sparsity()
