"""The base class of all losses: a formula over the terms of a training step, and what it needs from a batch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from crux.sae.losses.options import LossOptions
from crux.sae.losses.step import TrainingStep

Options = TypeVar("Options", bound=LossOptions)


class Loss(ABC, Generic[Options]):
    """A loss that SAEs are trained to minimise.

    To add a loss, write a subclass of this class and a subclass of `LossOptions` whose `_target_` names it. The options say
    whether the batches are token sequences or shuffled activations, and which later hook points the loss compares.
    """

    term_labels: ClassVar[Mapping[str, str]]
    """Labels of the loss's own terms in figures, with their units, by the names under which the step records them."""
    needs_spliced_pass: ClassVar[bool] = False
    """True if token batches need a spliced pass: the network runs a second time, with the SAEs in place."""
    needs_drawn_gradients: ClassVar[bool] = False
    """True if the loss needs the gradients of the log-probabilities of next tokens that are drawn from the clean predictions, with respect
    to the activations that the SAEs write."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def __call__(self, step: TrainingStep) -> Float[Tensor, "runs"]:
        """Return the loss of each run."""

    def row_labels(self) -> dict[str, str]:
        """Return the labels of all terms in figures, by their keys in the training history."""
        shared = {"sparsity": "penalty", "auxiliary": "architecture's own term", "auxk": "AuxK (share of variance)"}
        return {f"train/{term}": label for term, label in {"loss": "loss", **self.term_labels, **shared}.items()}
