"""Options of the plug-in. crux imports them at every start, so this file must not import torch."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from omegaconf import MISSING

from crux.sae.architectures.options import SaeOptions
from crux.sae.losses.options import LossOptions


@dataclass
class SoftThreshold(SaeOptions):
    """A ReLU SAE with the same threshold for every latent: c = ReLU(pre − margin)."""

    margin: Annotated[float, Gt(0)] = MISSING
    """What is subtracted from each pre-activation."""

    @property
    def arguments(self) -> dict[str, object]:
        return {"margin": self.margin}


@dataclass
class Absolute(LossOptions):
    """The mean absolute error of the reconstruction: scale · mean |x̂ − x| + λ · penalty."""

    scale: Annotated[float, Gt(0)] = MISSING
    """Coefficient of the mean absolute error."""

    @property
    def token_share(self) -> float:
        return 0.0  # it trains on shuffled activations


OPTIONS = {"sae": {"soft_threshold": SoftThreshold}, "loss": {"absolute": Absolute}}
