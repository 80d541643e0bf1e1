"""Jobs that estimate local learning coefficients, and the options of each experiment. This module does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

from annotated_types import Ge, Le, MinLen
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.schema import (
    Adam,
    BatchTrainer,
    Count,
    CountOrZero,
    Data,
    Device,
    Job,
    LanguageModel,
    Model,
    Rate,
    RateOrZero,
    Trainer,
    to_plain,
)
from crux.sae.options import SparseTraining
from crux.toy.options import OneSize


class Calibration(Enum):
    """Losses with a known learning coefficient: see src/crux/llc/calibration.py and src/crux/llc/experiments/kgons.py."""

    regular = "regular"
    monomials = "monomials"
    linear_networks = "linear_networks"
    kgons = "kgons"
    escape = "escape"


class SamplerName(Enum):
    """Samplers: see src/crux/llc/samplers."""

    sgld = "sgld"
    rmsprop_sgld = "rmsprop_sgld"
    mala = "mala"
    hmc = "hmc"


class Divergence(Enum):
    """Distances by which a behavioural loss compares outputs, over their last axis."""

    mse = "mse"
    """Squared distance, summed over outputs."""
    kl = "kl"
    """KL(before ‖ now) in nats, with the outputs as logits."""


class Split(Enum):
    """Part of the text."""

    train = "train"
    held_out = "held_out"


@dataclass
class Llc:
    """Options of an experiment with local learning coefficients."""

    experiment: str = MISSING
    """Name of the experiment: a file in src/crux/llc/experiments."""


@dataclass
class Calibrate(Llc):
    """Estimates of known learning coefficients."""

    cases: list[Calibration] = MISSING
    """Groups of losses to estimate."""
    length: Rate = MISSING
    """Factor on the number of draws of every chain; burn-in stays the same."""

    def check_section(self, key: str) -> None:
        if not self.cases:
            raise UserError(f"{key}.cases=[]: must name one or more of {', '.join(case.value for case in Calibration)}")


@dataclass
class Speed(Llc):
    """A measurement of chain-steps per second."""


@dataclass
class Sampling(Llc):
    """An experiment whose Markov chains can be set on the command line."""

    sampler: SamplerName = MISSING
    """Sampler that moves the chains."""
    leapfrogs: Count = MISSING
    """Leapfrog steps per move of sampler=hmc."""
    whitened: bool = MISSING
    """sampler=hmc and mala move in coordinates in which all directions have the same curvature at w*; ε is then of order 1. For
    up to 384 parameters."""
    chains: Count = MISSING
    """Chains per checkpoint and nβ; all run as one batch."""
    burn_in: Count = MISSING
    """Steps discarded at the start of each chain."""
    draws: Annotated[int, Ge(4), Le(10**9)] = MISSING
    """Draws kept per chain."""
    every: Count = MISSING
    """Steps between two draws."""
    nbetas: Annotated[list[Rate], MinLen(1)] = MISSING
    """Values of nβ in the posterior exp(−nβ L − γ/2 ‖w − w*‖²), with one estimate for each; n / log n for n samples."""
    step_size: Rate | None = None
    """ε; if not given, 0.1 / (nβ a_max + γ) with the largest curvature a_max at w*, or 0.5 / (…) for sampler=mala or hmc."""


@dataclass
class Kgons(Sampling):
    """Toy models at regular k-gons."""

    gamma: RateOrZero | None = None
    """γ, the strength of the pull to w*; if not given, 1, or 100 with dead features."""
    corners: Annotated[list[Annotated[int, Ge(5), Le(8)]], MinLen(1)] = MISSING
    """Number of corners of each k-gon, 5 to 8."""
    plus: CountOrZero = MISSING
    """Number of features that are not corners, with zero weights and a positive bias."""
    features: Count | None = None
    """Number of features of each model; those beyond corners and `plus` are dead. If not given, there are none of these."""

    def check_section(self, key: str) -> None:
        if not all(5 <= k <= 8 for k in self.corners):
            raise UserError(
                f"{key}.corners={self.corners}: k-gons with a known learning coefficient have 5 to 8 corners"
            )
        needed = max(self.corners) + self.plus
        if self.features is not None and self.features < needed:
            raise UserError(
                f"{key}.features={self.features}: must be {needed} or more, the corners and the features of {key}.plus"
            )


@dataclass
class LinearNetworks(Sampling):
    """Deep linear networks."""

    gamma: Rate = MISSING
    """γ, the strength of the pull to w*; without it the redundant factors are unbounded."""
    widths: Annotated[list[list[Count]], MinLen(1)] = MISSING
    """Layer widths of each network, input first."""
    ranks: list[CountOrZero] = MISSING
    """Rank of the true map of each network."""

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

    gamma: RateOrZero = MISSING
    """γ, the strength of the pull to w*."""
    samples: Count = MISSING
    """Data points in the loss (sequences for a language model): fixed, and the same for all chains."""


@dataclass
class Behavioural(OnData):
    """The effective number of parameters of a perceptron."""

    behaviours: Annotated[list[Divergence], MinLen(1)] = MISSING
    """Behavioural losses to sample."""
    hidden: Annotated[list[Count], MinLen(1)] = MISSING
    """Widths of the perceptron's hidden layers."""


@dataclass
class AlongTraining(OnData):
    """Estimates at checkpoints of a training run."""

    checkpoints: Count = MISSING
    """Largest number of checkpoints: the first, the last, and others spaced ever farther apart."""


@dataclass
class LanguageModelLlc(OnData):
    """Estimates for a language model."""

    parameters: list[str] = MISSING
    """Names of the parameters that move; * matches anything."""
    minibatch: Count | None = None
    """Sequences that each chain draws anew at every step; if not given, every step uses fixed sequences."""
    gradient_text: Split = MISSING
    """Part of the text on which the chains' gradients are computed."""
    evaluation_text: Split = MISSING
    """Part of the text on which L(w) and L(w*) are computed."""

    def check_section(self, key: str) -> None:
        if not self.parameters:
            raise UserError(f"{key}.parameters=[]: must name one or more parameters, such as transformer.h.7.mlp.*")


@dataclass
class ToyInstance(Model):
    """A trained toy model, if `path` is given."""

    instance: CountOrZero | None = None
    """Index of the instance, with settings as the fastest axis; if not given, the one with the lowest loss."""


@dataclass
class LlcJob(Job):
    """A job that estimates local learning coefficients."""

    llc: Llc = MISSING

    runner: ClassVar[str] = "crux.llc.job.run"
    checks: ClassVar[str | None] = "crux.llc.checks"

    def run_name(self) -> str:
        return f"llc {self.llc.experiment}"

    def mlflow_params(self) -> dict[str, object]:
        numbers = {key: value for key, value in to_plain(self.llc).items() if isinstance(value, int | float)}
        return {"experiment": f"llc/{self.llc.experiment}", "seed": self.seed, **numbers}

    def mlflow_tags(self) -> dict[str, str | None]:
        return {"llc": self.llc.experiment}


@dataclass
class ToyTrainingJob(LlcJob):
    """A job that estimates at checkpoints of a toy model's training."""

    llc: AlongTraining = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    toy: OneSize = MISSING
    model: ToyInstance = MISSING
    optimizer: Adam = MISSING
    trainer: BatchTrainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    trains: ClassVar[bool] = True


@dataclass
class SaeTrainingJob(LlcJob, SparseTraining):
    """A job that estimates at checkpoints of the training of an SAE on a toy model's hidden layer."""

    llc: AlongTraining = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    model: ToyInstance = MISSING
    trainer: Trainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    trains: ClassVar[bool] = True


@dataclass
class LanguageModelJob(LlcJob):
    """A job that estimates for some parameters of a language model."""

    cache: str | None = None
    """Folder of tokenised text; $CRUX_CACHE or ~/.cache/crux if not given."""
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
