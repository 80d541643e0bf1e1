"""The sections of the configuration that several kinds of jobs share, and what every job has.

Each option of a group has a dataclass next to its owner (`crux/<subject matter>/options.py`), which says the type, the meaning, the
unit and the bounds of its keys. Values are in conf/, once. A configuration holds only keys that its job and its options read, so Hydra's
composition itself rejects any other. A key that a parent YAML sets has no default in the dataclass, which would reset it. Hydra
understands a subset of type annotations: no Literal, one `X | None`, no nested unions.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib import import_module
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import MISSING

from crux.config.errors import UserError

Count = Annotated[int, Ge(1)]
"""1 or more."""
Rate = Annotated[float, Gt(0)]
"""More than 0."""


class Accelerator(Enum):
    """`auto`: CUDA if torch sees a GPU, otherwise the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """`auto`: float32 on the CPU, bfloat16 on CUDA."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class OptimizerName(Enum):
    """Adam is what Braun et al. 2405.12241 use; AdamW decouples the weight decay."""

    adam = "adam"
    adamw = "adamw"


@dataclass
class Model:
    """A subject that is a folder on disk."""

    path: str | None = None
    """A local folder: Hugging Face layout (config.json, model.safetensors, tokenizer.json), or the run folder of an experiment that
    trained the network."""


@dataclass
class LanguageModel(Model):
    """A language model: packaged, on disk (`path` takes precedence over `name`), or on the Hugging Face hub."""

    name: str = MISSING
    """`tiny` (packaged) or a name on the Hugging Face hub, such as `gpt2`."""
    process_weights: bool = MISSING
    """TransformerLens's weight processing: LayerNorm folded, weights centred. Fixes the basis the SAE lives in."""
    _target_: str | None = None
    """A function of your own that loads the subject: `load(model, device=..., dtype=...)` returns a crux.subjects.subject.Subject. The
    tokenizer is still that of `path` or `name`."""
    n_layers: Count | None = None
    """Blocks of a hub model, so that a wrong layer is refused before the hub is asked. Unknown if not given."""
    context: Annotated[int, Ge(2)] = MISSING
    """Tokens per sequence, for training and evaluation."""


@dataclass
class Data:
    """The text."""

    column: str | None = None
    """Column with the text, or with token ids (`input_ids`); found automatically if not given."""
    max_tokens: Count | None = None
    """Most training tokens to prepare; all if not given."""
    held_out_tokens: Count = MISSING
    """Most held-out tokens to prepare."""
    shuffle_batches: Count = MISSING
    """Micro-batches whose activations are shuffled together, for losses that train on shuffled activations."""


@dataclass
class Files(Data):
    """The packaged text, or files of your own."""

    path: str | None = None
    """Text, JSONL or Parquet file, or a folder of them; takes precedence over the packaged text."""


@dataclass
class HubData(Data):
    """A data set on the Hugging Face hub."""

    name: str = MISSING
    """Name of the data set."""
    config: str | None = None
    """Its configuration (subset); its only one if not given."""
    revision: str | None = None
    """Its commit or branch; the newest if not given."""
    split: str = MISSING
    """Its split."""


@dataclass
class Adam:
    """Adam or AdamW with a warm-up and a cosine schedule."""

    lr: Rate = MISSING
    """Learning rate after the warm-up."""
    betas: list[Annotated[float, Ge(0), Lt(1)]] = MISSING
    """Decay of the running means of the gradient and of its square."""
    eps: Rate = MISSING
    """Added to the denominator of a step."""
    weight_decay: Annotated[float, Ge(0)] = MISSING
    """Weight decay; Adam adds it to the gradient, AdamW shrinks the weights."""
    warmup_steps: Annotated[int, Ge(0)] = MISSING
    """Steps of linear warm-up; step 0 already moves."""
    min_lr_factor: Annotated[float, Ge(0), Le(1)] = MISSING
    """Learning rate at the end of the cosine schedule, as a share of lr."""

    def check_section(self, key: str) -> None:
        if len(self.betas) != 2:
            raise UserError(f"{key}.betas={self.betas}: must be two numbers, each from 0 up to but not 1")


@dataclass
class Optimizer(Adam):
    """The optimiser of an SAE's weights."""

    name: OptimizerName = MISSING
    """adam or adamw."""
    clip: Rate = MISSING
    """The gradient's norm is clipped to this, for each SAE."""


@dataclass
class Display:
    """Options of a job's display."""

    progress: bool = MISSING
    """Show progress bars."""


@dataclass
class Device(Display):
    """The device that a job computes on."""

    accelerator: Accelerator = MISSING
    """auto, cpu or cuda."""


@dataclass
class Trainer(Device):
    """The length of a training run and its intervals, in optimiser steps."""

    max_steps: Count = MISSING
    """Optimiser steps."""
    log_every: Count = MISSING
    """Steps between rows of the history."""
    checkpoint_every: Count = MISSING
    """Steps between checkpoints."""


@dataclass
class BatchTrainer(Trainer):
    """A training run on batches."""

    batch: Count = MISSING
    """Sequences (toy models: samples) per micro-batch, over all devices together."""


@dataclass
class Tracking:
    """Tracking of runs in MLflow, where they are compared."""

    mlflow: bool = MISSING
    """Track runs in MLflow."""
    experiment: str = MISSING
    """MLflow's experiment."""
    uri: str | None = None
    """Tracking server or database; sqlite in the outputs folder if neither this nor MLFLOW_TRACKING_URI is set."""


@dataclass
class Job:
    """The options of every kind of job. A subclass adds the sections that its kind of job reads."""

    seed: Annotated[int, Ge(0)] = MISSING
    """Seed of everything random."""
    resume: bool = MISSING
    """Continue the newest unfinished run with this very configuration."""
    resume_from: str | None = None
    """Continue the run in this folder."""
    retry_failed: bool = MISSING
    """When a sweep is started again, also run those of its jobs again that failed."""
    output_dir: str = MISSING
    """Folder of the runs and the tracking database."""
    sweep_name: str | None = None
    """The sweep's folder in `<output_dir>/sweeps` and its tag in MLflow; a grid without one is named by its command line."""
    report_l0: list[Rate] = MISSING
    """L0 values at which a sweep's report compares losses."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks for the training, by any name: each has `_target_` and the arguments of its class."""
    trainer: Display = MISSING
    tracking: Tracking = MISSING

    runner: ClassVar[str]
    """Dotted name of the function that runs such a job: `run(config, folder=...)`."""
    checks: ClassVar[str | None] = None
    """Dotted name of a torch-free module with `check_job(config, given)` and `check_subject(config)`; None: bounds say it all."""

    def check(self, given: Collection[str]) -> None:
        """Check what bounds cannot express, before the subject is at hand.

        Args:
            given: the keys on the command line.

        Raises:
            UserError: for the first thing that cannot work, in one line.
        """
        if self.checks is not None:
            import_module(self.checks).check_job(self, given)

    def check_subject(self) -> None:
        """Check that the subject can be reached and that the configuration fits it; a hub model is fetched for that.

        Raises:
            UserError: in one line.
        """
        if self.checks is not None:
            import_module(self.checks).check_subject(self)

    def run_name(self) -> str:
        """Return the run's name for people, such as `e2e_ds L6 λ=1.5`."""
        raise NotImplementedError

    def mlflow_params(self) -> dict[str, object]:
        """Return the scalars by which runs are compared; the whole configuration is an artifact."""
        return {"seed": self.seed}

    def mlflow_tags(self) -> dict[str, str | None]:
        """Return the tags by which people filter runs; None leaves one out."""
        return {}


def to_plain(config: object) -> dict[str, Any]:
    """Return a configuration as plain containers: what is written to config.yaml and compared on resuming."""

    def plain(value: Any) -> Any:
        match value:
            case Enum():
                return value.value
            case dict():
                return {k: plain(v) for k, v in value.items()}
            case list() | tuple():
                return [plain(v) for v in value]
            case _:
                return value

    return plain(asdict(config))  # pyright: ignore[reportArgumentType]
