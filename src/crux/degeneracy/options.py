"""Jobs of the degeneracy and interaction-basis experiments, and options of the degeneracy measures. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, ClassVar

from annotated_types import Gt, Lt, MinLen
from omegaconf import MISSING

from crux.config.schema import Adam, Count, Data, Device, Job, LanguageModel, Model, Trainer, to_plain
from crux.degeneracy.basis_options import (
    Dictionaries,
    InteractionBasis,
    LanguageBases,
    MlpBases,
    ModularAdditionBases,
    ModularAdditionTraining,
    PlantedModules,
)


class MeasuredNetwork(Enum):
    """The network whose degeneracy is measured: the subject (model, model.path), or a ReLU perceptron trained on digits."""

    model = "model"
    mlp = "mlp"


@dataclass
class Degeneracy:
    """Options of the measures of degeneracy. If no network is given, they are measured on a perceptron trained on digits."""

    experiment: str = MISSING
    """The experiment's name in run folders and in MLflow."""
    thresholds: Annotated[list[Annotated[float, Gt(0), Lt(1)]], MinLen(1)] = MISSING
    """For spectra: shares of the largest eigenvalue above which a direction counts. For synchronised neurons: distances up to which two
    neurons may be in one block."""
    hidden: Annotated[list[Count], MinLen(1)] = MISSING
    """Widths of the perceptron's hidden layers."""
    steps: Count = MISSING
    """Full-batch AdamW steps of the perceptron's training."""

    module: ClassVar[str]
    """Name of the experiment's module in src/crux/degeneracy/experiments."""


@dataclass
class Spectra(Degeneracy):
    """Options of the experiment on spectra: linearly dependent activations and Jacobians."""

    network: MeasuredNetwork = MISSING
    """The subject, or the perceptron."""
    sequences: Count = MISSING
    """Number of text sequences, for a language model."""

    module: ClassVar[str] = "spectra"


@dataclass
class Synchronised(Degeneracy):
    """Options of the experiment on synchronised neurons: ReLU neurons that are on for the same inputs."""

    module: ClassVar[str] = "synchronised"


@dataclass
class ExperimentJob(Job):
    """Base of the jobs on degeneracy and interaction bases. Each job has a section with the options of its experiment."""

    runner: ClassVar[str] = "crux.degeneracy.job.run"
    checks: ClassVar[str | None] = "crux.degeneracy.checks"
    group: ClassVar[str]
    """Name of the section with the experiment's options: `degeneracy` or `interaction_basis`."""

    @property
    def section(self) -> Degeneracy | InteractionBasis:
        """Options of the experiment."""
        return getattr(self, self.group)

    def run_name(self) -> str:
        return f"{self.group} {self.section.experiment}"

    def mlflow_params(self) -> dict[str, object]:
        numbers = {key: value for key, value in to_plain(self.section).items() if isinstance(value, int | float)}
        return {"experiment": f"{self.group}/{self.section.experiment}", "seed": self.seed, **numbers}

    def mlflow_tags(self) -> dict[str, str | None]:
        return {self.group: self.section.experiment}


@dataclass
class SpectraJob(ExperimentJob):
    """A job that measures spectra and ranks along a language model or a perceptron."""

    degeneracy: Spectra = MISSING
    model: LanguageModel = MISSING
    data: Data = MISSING
    hook_points: Annotated[list[str], MinLen(1)] | None = None
    """Hook points of the language model, in its order; default: the residual stream before every block and after the last."""
    cache: str | None = None
    """Folder of tokenised text; default: $CRUX_CACHE or ~/.cache/crux."""
    trainer: Device = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    group: ClassVar[str] = "degeneracy"


@dataclass
class SynchronisedJob(ExperimentJob):
    """A job that finds the ReLU neurons of a perceptron that are on for the same inputs, and so can share a gate."""

    degeneracy: Synchronised = MISSING
    model: Model = field(default_factory=Model)

    group: ClassVar[str] = "degeneracy"


@dataclass
class BasesJob(ExperimentJob):
    """A job that finds interaction bases of networks that the experiment creates."""

    interaction_basis: InteractionBasis = MISSING

    group: ClassVar[str] = "interaction_basis"


@dataclass
class LanguageBasesJob(BasesJob):
    """A job that compares bases of a language model's activations."""

    interaction_basis: LanguageBases = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    model: LanguageModel = MISSING
    data: Data = MISSING
    cache: str | None = None
    """Folder of tokenised text; default: $CRUX_CACHE or ~/.cache/crux."""
    trainer: Device = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class AdditionTrainingJob(BasesJob):
    """A job that trains a modular-addition transformer."""

    interaction_basis: ModularAdditionTraining = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    optimizer: Adam = MISSING
    trainer: Trainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    trains: ClassVar[bool] = True


@dataclass
class AdditionBasesJob(BasesJob):
    """A job that compares bases of a modular-addition transformer, which it trains unless model.path is given."""

    interaction_basis: ModularAdditionBases = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    model: Model = field(default_factory=Model)
    optimizer: Adam = MISSING
    trainer: Trainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    trains: ClassVar[bool] = True


OPTIONS: Mapping[str, Mapping[str, type]] = {
    "job": {
        "degeneracy_spectra": SpectraJob,
        "degeneracy_neurons": SynchronisedJob,
        "interaction_bases": BasesJob,
        "interaction_bases_of_language_models": LanguageBasesJob,
        "interaction_bases_of_addition": AdditionBasesJob,
        "addition_training": AdditionTrainingJob,
    },
    "interaction_basis": {"mlp": MlpBases, "modules": PlantedModules, "dictionaries": Dictionaries},
}
