"""What a loss is: a formula over the terms of a step, and what it needs from a batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.options import LossOptions
from crux.sae.losses.step import TrainingStep

Options = TypeVar("Options", bound=LossOptions)


class Loss(ABC, Generic[Options]):
    """The formula that SAEs are trained to minimise.

    A loss of your own is one file in your package: a subclass of this class and a subclass of `LossOptions`, whose `_target_` names it.
    Whether its batches are token sequences or shuffled activations, and which later hook points it compares, is in the options.
    """

    term_labels: ClassVar[Mapping[str, str]]
    """The loss's own terms by their names in a step, with their units: how figures call them."""
    needs_spliced_pass: ClassVar[bool] = False
    """Whether token batches run through the network a second time, with the SAEs in place."""
    needs_drawn_gradients: ClassVar[bool] = False
    """Whether it looks at the gradients of the log-probabilities of labels that are drawn from the clean predictions."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        """Return each run's loss."""

    def row_labels(self) -> dict[str, str]:
        """Return the labels of all terms by their keys in the training history."""
        shared = {"sparsity": "penalty", "auxiliary": "auxiliary", "auxk": "AuxK (share of variance)"}
        return {f"train/{term}": label for term, label in {"loss": "loss", **self.term_labels, **shared}.items()}
