"""The jobs that estimate local learning coefficients, and the options of each experiment. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt, MinLen
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import (
    Adam,
    BatchTrainer,
    Count,
    Data,
    Device,
    Job,
    LanguageModel,
    Model,
    Rate,
    Trainer,
    to_plain,
)
from crux.sae.options import SparseTraining
from crux.toy.options import OneSize


class Calibration(Enum):
    """Losses whose learning coefficients are known: src/crux/llc/calibration.py, src/crux/llc/experiments/kgons.py."""

    regular = "regular"
    monomials = "monomials"
    linear_networks = "linear_networks"
    kgons = "kgons"
    escape = "escape"


class SamplerName(Enum):
    """How chains move: src/crux/llc/samplers."""

    sgld = "sgld"
    rmsprop_sgld = "rmsprop_sgld"
    mala = "mala"
    hmc = "hmc"


class Divergence(Enum):
    """How a behavioural loss compares outputs, over their last axis."""

    mse = "mse"
    """Squared distance, summed."""
    kl = "kl"
    """KL(before ‖ now) of the distributions whose logits they are, nats."""


class Split(Enum):
    """A part of the text."""

    train = "train"
    held_out = "held_out"


@dataclass
class Llc:
    """An experiment with local learning coefficients."""

    experiment: str = MISSING
    """Its name: a file in src/crux/llc/experiments."""


@dataclass
class Calibrate(Llc):
    """Estimates of learning coefficients that are known."""

    cases: list[Calibration] = MISSING
    """What is calibrated on."""
    length: Rate = MISSING
    """Draws of every chain are so many times as many as the cases say; burn-in stays."""

    def check_section(self, key: str) -> None:
        if not self.cases:
            raise UserError(f"{key}.cases=[]: must name one or more of {', '.join(case.value for case in Calibration)}")


@dataclass
class Speed(Llc):
    """Chain-steps per second."""


@dataclass
class Sampling(Llc):
    """An experiment whose chains the command line describes."""

    sampler: SamplerName = MISSING
    """How chains move."""
    leapfrogs: Count = MISSING
    """Steps of a move of sampler=hmc."""
    whitened: bool = MISSING
    """sampler=hmc and mala move in coordinates in which all directions are equally stiff at w*; then ε is of order 1. Up to 384
    parameters."""
    chains: Count = MISSING
    """Of each checkpoint and each nβ, all next to each other."""
    burn_in: Count = MISSING
    """Steps of each chain that are discarded."""
    draws: Annotated[int, Ge(4)] = MISSING
    """Kept of each chain."""
    every: Count = MISSING
    """Steps from one draw to the next."""
    nbetas: Annotated[list[Rate], MinLen(1)] = MISSING
    """nβ of the posterior exp(−nβ L − γ/2 ‖w − w*‖²), one estimate each; n / log n at n samples."""
    step_size: Rate | None = None
    """ε; if not given 0.1 / (nβ a_max + γ), a_max the largest curvature at w*, and 0.5 with sampler=mala or hmc."""


@dataclass
class Kgons(Sampling):
    """Toy models at a regular k-gon."""

    gamma: Annotated[float, Ge(0)] | None = None
    """γ, the pull to w*; if not given 1, and 100 if there are dead features."""
    corners: Annotated[list[int], MinLen(1)] = MISSING
    """Corners of the k-gons, 5 to 8."""
    plus: Annotated[int, Ge(0)] = MISSING
    """Features besides the corners that are alive in their bias alone."""
    features: Count | None = None
    """All of a k-gon's features; those that are neither corners nor alive are dead. As few as possible if not given."""

    def check_section(self, key: str) -> None:
        if not all(5 <= k <= 8 for k in self.corners):
            raise UserError(
                f"{key}.corners={self.corners}: k-gons with a known learning coefficient have 5 to 8 corners"
            )
        needed = max(self.corners) + self.plus
        if self.features is not None and self.features < needed:
            raise UserError(
                f"{key}.features={self.features}: {needed} are corners or alive ({key}.corners, {key}.plus); must be so many or more"
            )


@dataclass
class LinearNetworks(Sampling):
    """Deep linear networks."""

    gamma: Annotated[float, Gt(0)] = MISSING
    """γ, the pull to w*; without it nothing bounds the redundant factors."""
    widths: Annotated[list[list[int]], MinLen(1)] = MISSING
    """Of each network, input first."""
    ranks: list[int] = MISSING
    """Of the true map of each."""

    def check_section(self, key: str) -> None:
        if len(self.widths) != len(self.ranks):
            raise UserError(
                f"{key}.ranks={self.ranks}: must be one for each of the {len(self.widths)} networks of {key}.widths"
            )
        for widths, rank in zip(self.widths, self.ranks, strict=True):
            if len(widths) < 2 or min(widths) < 1:
                raise UserError(f"{key}.widths: {widths} must be two widths or more, each 1 or more")
            if not 0 <= rank <= min(widths):
                raise UserError(f"{key}.ranks: a network of widths {widths} has rank 0 to {min(widths)}, not {rank}")


@dataclass
class OnData(Sampling):
    """An experiment on a loss that is a mean over data."""

    gamma: Annotated[float, Ge(0)] = MISSING
    """γ, the pull to w*."""
    samples: Count = MISSING
    """Data points of the loss, sequences for a language model: fixed, the same for all chains."""


@dataclass
class Behavioural(OnData):
    """The effective number of parameters of a perceptron."""

    behaviours: Annotated[list[Divergence], MinLen(1)] = MISSING
    """Behavioural losses that are sampled."""
    hidden: Annotated[list[Count], MinLen(1)] = MISSING
    """Widths of the perceptron's hidden layers."""


@dataclass
class AlongTraining(OnData):
    """Estimates at checkpoints of a training."""

    checkpoints: Count = MISSING
    """Up to so many: the first, the last, and between them ever farther apart."""


@dataclass
class LanguageModelLlc(OnData):
    """Estimates for a language model."""

    parameters: list[str] = MISSING
    """Which parameters move, by name; * stands for anything."""
    minibatch: Count | None = None
    """Sequences that each chain draws anew for every step; all of the fixed ones if not given."""
    gradient_text: Split = MISSING
    """What the chains follow the gradient on."""
    evaluation_text: Split = MISSING
    """What L(w) and L(w*) are measured on."""

    def check_section(self, key: str) -> None:
        if not self.parameters:
            raise UserError(f"{key}.parameters=[]: must name one or more parameters, such as transformer.h.7.mlp.*")


@dataclass
class ToyInstance(Model):
    """A trained toy model, if `path` names one."""

    instance: Annotated[int, Ge(0)] | None = None
    """Number of the instance, settings running fastest; the one with the lowest loss if not given."""


@dataclass
class LlcJob(Job):
    """Estimates local learning coefficients."""

    llc: Llc = MISSING

    runner: ClassVar[str] = "crux.llc.job.run"
    checks: ClassVar[str | None] = "crux.llc.checks"

    def run_name(self) -> str:
        return f"llc {self.llc.experiment}"

    def mlflow_params(self) -> dict[str, object]:
        own = {key: value for key, value in to_plain(self.llc).items() if isinstance(value, int | float)}
        return {"experiment": f"llc/{self.llc.experiment}", "seed": self.seed, **own}

    def mlflow_tags(self) -> dict[str, str | None]:
        return {"llc": self.llc.experiment}


@dataclass
class ToyTrainingJob(LlcJob):
    """Estimates along the training of a toy model."""

    llc: AlongTraining = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    toy: OneSize = MISSING
    model: ToyInstance = MISSING
    optimizer: Adam = MISSING
    trainer: BatchTrainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class SaeTrainingJob(LlcJob, SparseTraining):
    """Estimates along the training of an SAE on a toy model's hidden layer."""

    llc: AlongTraining = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    model: ToyInstance = MISSING
    trainer: Trainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class LanguageModelJob(LlcJob):
    """Estimates for some parameters of a language model."""

    cache: str | None = None
    """Where tokenised text is kept; $CRUX_CACHE or ~/.cache/crux if not given."""
    llc: LanguageModelLlc = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    model: LanguageModel = MISSING
    data: Data = MISSING
    trainer: Device = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]


OPTIONS: Mapping[str, Mapping[str, type]] = {
    "job": {
        "llc": LlcJob,
        "llc_toy_training": ToyTrainingJob,
        "llc_sae_training": SaeTrainingJob,
        "llc_language_model": LanguageModelJob,
    },
    "llc": {
        "calibrate": Calibrate,
        "speed": Speed,
        "kgon": Kgons,
        "linear": LinearNetworks,
        "behavioural": Behavioural,
        "along_training": AlongTraining,
        "language_model": LanguageModelLlc,
    },
}
