"""Options of the jobs that train toy models, and SAEs on toy models, with those of each experiment. Imports no torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar, NamedTuple

from annotated_types import Gt, Le, MinLen
from omegaconf import MISSING

from crux.config.errors import UserError
from crux.config.no_effect import check_has_effect
from crux.config.schema import Adam, BatchTrainer, Count, CountOrZero, Job, Model, Rate, TokenCount
from crux.sae.losses.options import LossOptions
from crux.sae.options import SparseTraining
from crux.toy.absorption_options import AbsorptionJob


class Kind(Enum):
    """The architecture of a toy model; src/crux/toy/superposition.py has the formulas."""

    linear = "linear"
    relu_output = "relu_output"
    relu_hidden = "relu_hidden"
    absolute_value = "absolute_value"


class Cooccurrence(Enum):
    """The way in which synthetic features occur together; src/crux/toy/features.py explains each."""

    independent = "independent"
    correlated = "correlated"
    anticorrelated = "anticorrelated"
    one_active = "one_active"


class Size(NamedTuple):
    """The size of a toy model."""

    n_features: int
    n_hidden: int
    n_sets: int

    @property
    def name(self) -> str:
        """`20_5`: features and hidden dimensions, for the names of files and metrics."""
        return f"{self.n_features}_{self.n_hidden}"


@dataclass
class Toy:
    """Toy models of superposition, and the experiment that they are trained for."""

    experiment: str = MISSING
    """Name of the experiment's file in src/crux/toy/experiments; set by experiment=toy/…"""
    kind: Kind = MISSING
    """The model's architecture."""
    importance: Rate = MISSING
    """Feature i (counted from 0) has importance importance^i in the loss."""
    densities: Annotated[list[Annotated[float, Gt(0), Le(1)]], MinLen(1)] = MISSING
    """Densities p = 1 − S, the same for all features of an instance; one instance per density and seed."""
    together: Cooccurrence = MISSING
    """The way in which features occur together."""
    signed: bool = MISSING
    """Magnitudes from [-1, 1) instead of [0, 1)."""
    seeds: Count = MISSING
    """Number of instances that differ only in their seed, which is seed, seed + 1, …"""
    held_out: Count = MISSING
    """Samples on which the loss of a trained instance is measured; a multiple of 1024, or less than 1024."""
    snapshots: CountOrZero = MISSING
    """Number of evenly spaced snapshots of the weights during training; 0: none."""
    init_scale: Rate = MISSING
    """Scale of the initial weights relative to Xavier's; below one, learning has plateaus."""

    @property
    def model_sizes(self) -> list[Size]:
        """The sizes of the models; each has one or more programs."""
        raise NotImplementedError

    def check_section(self, key: str) -> None:
        for size in self.model_sizes:
            self._check_sets(key, size)
        if self.held_out % min(self.held_out, 1024):
            raise UserError(f"{key}.held_out={self.held_out}: must be a multiple of 1024, or less than 1024")

    def _check_sets(self, key: str, size: Size) -> None:
        n, n_sets = size.n_features, size.n_sets
        if n % n_sets:
            raise UserError(f"{key}.n_sets={n_sets}: {n} features cannot form {n_sets} equal sets")
        if self.together is Cooccurrence.anticorrelated and max(self.densities) * n / n_sets > 1:
            raise UserError(
                f"{key}.densities={self.densities}: at most one of {n // n_sets} features of a set is active, so a density can be "
                f"at most {n_sets / n:g}"
            )


@dataclass
class OneSize(Toy):
    """Toy models that all have one size."""

    n_features: Count = MISSING
    """Number of features, which are the inputs of the model."""
    n_hidden: Count = MISSING
    """Number of hidden dimensions."""
    n_sets: Count = 1
    """Number of equal sets of correlated or anticorrelated features."""

    @property
    def model_sizes(self) -> list[Size]:
        return [self.size]

    @property
    def size(self) -> Size:
        """The size of every model."""
        return Size(self.n_features, self.n_hidden, self.n_sets)


@dataclass
class SeveralSizes(Toy):
    """Toy models of several sizes."""

    sizes: Annotated[list[list[Count]], MinLen(1)] = MISSING
    """[n_features, n_hidden, n_sets] of each model."""

    @property
    def model_sizes(self) -> list[Size]:
        return [Size(*size) for size in self.sizes]

    def check_section(self, key: str) -> None:
        for size in self.sizes:
            if len(size) != 3 or min(size) < 1 or size[0] % size[2]:
                raise UserError(
                    f"{key}.sizes: {size} must be [n_features, n_hidden, n_sets], with n_features a multiple of n_sets"
                )
        super().check_section(key)


@dataclass
class Tiled(OneSize):
    """Toy models with so many instances that they are trained as several programs."""

    tile: Count = MISSING
    """Largest number of streams (densities × seeds) that are trained as one program."""


@dataclass
class PhaseDiagram(SeveralSizes):
    """The phase diagram of an extra feature, over its relative importance and the density."""

    ratios: Annotated[list[Rate], MinLen(2)] = MISSING
    """Importances of the last feature relative to the others, evenly spaced on a logarithmic scale."""
    tile: Count = MISSING
    """Largest number of streams (densities × seeds) that are trained as one program."""


@dataclass
class OneVariedFeature(OneSize):
    """Five features in two dimensions, one of them made sparser or denser."""

    ratios: Annotated[list[Rate], MinLen(1)] = MISSING
    """Densities of the last feature relative to the others."""


@dataclass
class DoubleDescent(OneSize):
    """Toy models that are trained on finite training sets."""

    points: Annotated[list[Count], MinLen(1)] = MISSING
    """Sizes of the training sets."""
    unit: bool = MISSING
    """Scale samples to norm 1."""


@dataclass
class ToyJob(Job):
    """A job that trains toy models and computes the result of an experiment with them."""

    toy: Toy = MISSING
    optimizer: Adam = MISSING
    """AdamW."""
    trainer: BatchTrainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]

    runner: ClassVar[str] = "crux.toy.job.run"
    trains: ClassVar[bool] = True

    def check(self, given: Collection[str]) -> None:
        if "toy.experiment" in given:
            raise UserError(f"toy.experiment={self.toy.experiment}: choose an experiment with experiment=toy/…")
        correlated = (Cooccurrence.correlated, Cooccurrence.anticorrelated)
        if self.toy.together not in correlated and "toy.together" not in given:
            check_has_effect(given, "toy.n_sets", because=f"features are {self.toy.together.value} (toy.together)")
        from crux.toy.memory import check_toy_memory  # which imports this module

        check_toy_memory(self.toy, self.trainer, given=given)

    def run_name(self) -> str:
        sizes = ",".join(f"{size.n_features}→{size.n_hidden}" for size in self.toy.model_sizes)
        return f"toy {self.toy.experiment} {self.toy.kind.value} {sizes}"

    def mlflow_params(self) -> dict[str, object]:
        sizes = self.toy.model_sizes
        return {
            "experiment": f"toy/{self.toy.experiment}",
            "model": self.toy.kind.value,
            "n_features": ",".join(str(size.n_features) for size in sizes),
            "n_hidden": ",".join(str(size.n_hidden) for size in sizes),
            "importance": self.toy.importance,
            "seeds": self.toy.seeds,
            "seed": self.seed,
            "lr": self.optimizer.lr,
            "max_steps": self.trainer.max_steps,
            "batch": self.trainer.batch,
        }

    def mlflow_tags(self) -> dict[str, str | None]:
        return {"toy": self.toy.experiment}


@dataclass
class ToyModel(Model):
    """A trained toy model."""

    context: Count = MISSING
    """A micro-batch has trainer.batch · context samples."""
    instance: CountOrZero | None = None
    """Number of the instance, counted with settings varying fastest; by default the one with the lowest loss."""


@dataclass
class ToySaeTrainer(BatchTrainer):
    """Training settings of an SAE on a toy model, which runs on the CPU."""

    accumulate: Count = MISSING
    """Micro-batches per optimiser step."""


@dataclass
class ToyEvaluation:
    """Settings of the evaluation of an SAE on fresh samples."""

    tokens: TokenCount = MISSING
    """Number of samples in the final evaluation."""


@dataclass
class ToySaeJob(SparseTraining):
    """A job that trains an SAE on a trained toy model and evaluates it."""

    target_l0: Rate | None = None
    """Adjust λ until the SAE has this L0, the mean number of latents that fire per sample."""
    model: ToyModel = MISSING
    loss: LossOptions = MISSING
    trainer: ToySaeTrainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    evaluation: ToyEvaluation = MISSING

    runner: ClassVar[str] = "crux.toy.sae_job.run"
    trains: ClassVar[bool] = True
    checks: ClassVar[str | None] = "crux.toy.checks"

    @property
    def samples(self) -> int:
        """Samples of a micro-batch."""
        return self.trainer.batch * self.model.context

    def run_name(self) -> str:
        words = [*([] if self.sae.name == "relu" else [self.sae.name]), self.loss.name, "hook_hidden"]
        if self.sae.fixed_k:
            return " ".join([*words, f"k={self.sae.arguments['k']}"])
        return " ".join([*words, f"λ={self.sparsity:g}" if self.target_l0 is None else f"L0={self.target_l0:g}"])

    def mlflow_params(self) -> dict[str, object]:
        params = {
            "loss": self.loss.name,
            "hook_point": "hook_hidden",
            "sparsity": self.sparsity,
            "target_l0": self.target_l0,
            "k": self.sae.arguments.get("k"),
            "seed": self.seed,
            "sae": self.sae.name,
            "model": self.model.path,
            "lr": self.optimizer.lr,
            "max_steps": self.trainer.max_steps,
            "tokens": self.trainer.max_steps * self.samples * self.trainer.accumulate,
            **self.loss.numeric_options,
        }
        return {key: value for key, value in params.items() if value is not None}

    def mlflow_tags(self) -> dict[str, str | None]:
        return {"loss": self.loss.name, "sae": self.sae.name}


OPTIONS: Mapping[str, Mapping[str, type]] = {
    "job": {"toy": ToyJob, "toy_sae": ToySaeJob, "toy_absorption": AbsorptionJob},
    "toy": {
        "one_size": OneSize,
        "tiled": Tiled,
        "several_sizes": SeveralSizes,
        "phase_diagram": PhaseDiagram,
        "one_varied_feature": OneVariedFeature,
        "double_descent": DoubleDescent,
    },
}
