"""The sections of the configuration that several kinds of jobs share, and the options of every job.

Each option of a group has a dataclass next to its owner (`crux/<subject matter>/options.py`), with the type, meaning, unit and bounds of
its keys. The string below a field is its description on the help page. Values are in conf/, once. A configuration holds only keys that
its job and its options read, so Hydra's composition itself rejects any other key. A key that a parent YAML sets has no default in the
dataclass, because the default would reset it. Hydra understands a subset of type annotations: no Literal, one `X | None`, no nested
unions.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib import import_module
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Le, Lt
from omegaconf import MISSING

from crux.config.errors import UserError

Count = Annotated[int, Ge(1), Le(10**9)]
"""A number of steps, samples, sizes: 1 or more. The upper limits here are beyond any use; they catch slips and overflows."""
CountOrZero = Annotated[int, Ge(0), Le(10**9)]
"""0 or more."""
TokenCount = Annotated[int, Ge(1), Le(10**13)]
"""A number of tokens: 1 or more."""
Rate = Annotated[float, Gt(0), Le(1e12)]
"""More than 0."""
RateOrZero = Annotated[float, Ge(0), Le(1e12)]
"""0 or more."""
ContextLength = Annotated[int, Ge(2), Le(10**7)]
"""Tokens per sequence: 2 or more, because the first token is not predicted."""


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


class ReportGeometry(Enum):
    """`pca` and `umap` compare the dictionaries of a sweep's SAEs; `umap` needs the extra `umap`."""

    none = "none"
    pca = "pca"
    umap = "umap"


@dataclass
class Model:
    """A subject that is a folder on disk."""

    path: str | None = None
    """Folder of the model: Hugging Face layout (config.json, model.safetensors, tokenizer.json), or the run folder of an experiment
    that trained the network."""


@dataclass
class LanguageModel(Model):
    """A language model: packaged, on disk (`path` takes precedence over `name`), or on the Hugging Face hub."""

    name: str = MISSING
    """`tiny` (the packaged model), or the name of a model on the Hugging Face hub, such as `gpt2`."""
    process_weights: bool = MISSING
    """Fold LayerNorm and centre the weights, as TransformerLens does; this changes the basis of the activations."""
    _target_: str | None = None
    """A function of your own that loads the subject: `load(model, device=..., dtype=...)` returns a crux.subjects.subject.Subject. The
    tokenizer is that of model.path or model.name."""
    n_layers: Count | None = None
    """Number of blocks of a hub model, so that a wrong layer is rejected before anything is downloaded; null: unknown."""
    context: ContextLength = MISSING
    """Tokens per sequence, for training and evaluation."""


@dataclass
class Data:
    """The text."""

    column: str | None = None
    """Column with the text, or with token ids (`input_ids`, less the padding of `attention_mask`); null: found automatically."""
    held_out_split: str | None = None
    """Split to hold out; null: the validation or test split if there is one, otherwise a part of the training text."""
    max_tokens: TokenCount | None = None
    """Maximum number of training tokens to prepare, a sample of the whole text; null: all."""
    held_out_tokens: TokenCount = MISSING
    """Maximum number of held-out tokens to prepare, a sample of the whole held-out text."""
    shuffle_batches: Count = MISSING
    """Number of micro-batches whose activations are shuffled together; only for losses without a spliced pass, such as loss=local."""


@dataclass
class Files(Data):
    """The packaged text, or files of your own."""

    path: str | None = None
    """Your own text instead of the packaged text: a text, JSONL, CSV, Parquet or Arrow file, or a folder of such files."""
    split: str | None = None
    """Split of a folder to train on; null: train if the names of its files tell splits, otherwise the whole folder."""


@dataclass
class HubData(Data):
    """A data set on the Hugging Face hub."""

    name: str = MISSING
    """Name of the data set on the hub."""
    config: str | None = None
    """Configuration (subset) of the data set; null: the only one."""
    revision: str | None = None
    """Commit or branch of the data set; null: the newest."""
    split: str = MISSING
    """Split of the data set to train on."""


@dataclass
class Adam:
    """Adam or AdamW with a warm-up and a cosine schedule."""

    lr: Rate = MISSING
    """Learning rate at the end of the warm-up."""
    betas: list[Annotated[float, Ge(0), Lt(1)]] = MISSING
    """Decay rates of the running means of the gradient and of its square."""
    eps: Rate = MISSING
    """Added to the denominator of Adam's update."""
    weight_decay: RateOrZero = MISSING
    """Weight decay: Adam adds it to the gradient, AdamW shrinks the weights."""
    warmup_steps: CountOrZero = MISSING
    """Number of steps of linear warm-up; the first step has a learning rate above 0."""
    min_lr_factor: Annotated[float, Ge(0), Le(1)] = MISSING
    """Learning rate at the end of the cosine schedule, as a share of optimizer.lr; 1: constant."""

    def check_section(self, key: str) -> None:
        if len(self.betas) != 2:
            raise UserError(f"{key}.betas={self.betas}: must be two numbers, each from 0 up to but not 1")


@dataclass
class Optimizer(Adam):
    """The optimiser of an SAE's weights."""

    name: OptimizerName = MISSING
    """The optimiser; optimizer=adam and optimizer=adamw also set its other values."""
    clip: Rate = MISSING
    """Maximum norm of the gradient of each SAE; larger gradients are scaled down."""


@dataclass
class Display:
    """Options of a job's display."""

    progress: bool = MISSING
    """Show progress bars."""


@dataclass
class Device(Display):
    """The device that a job computes on."""

    accelerator: Accelerator = MISSING
    """Device to compute on; auto: CUDA if there is a GPU, otherwise the CPU."""


@dataclass
class Trainer(Device):
    """The length of a training run and its intervals, in optimiser steps."""

    max_steps: Count = MISSING
    """Number of optimiser steps."""
    log_every: Count = MISSING
    """Steps between rows of the training history."""
    checkpoint_every: Count = MISSING
    """Steps between checkpoints."""


@dataclass
class BatchTrainer(Trainer):
    """A training run on batches."""

    batch: Count = MISSING
    """Sequences per micro-batch, over all devices together; toy models: samples."""


@dataclass
class Tracking:
    """Tracking of runs in MLflow, where they are compared."""

    mlflow: bool = MISSING
    """Track runs in MLflow."""
    experiment: str = MISSING
    """Name of the experiment in MLflow that runs are recorded under."""
    uri: str | None = None
    """Tracking server or database; null: $MLFLOW_TRACKING_URI, or sqlite in the outputs folder."""


@dataclass
class Job:
    """The options of every kind of job. A subclass adds the sections that its kind of job reads."""

    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = MISSING
    """Seed of all random numbers: initial weights, order of the data, sampling."""
    resume: bool = MISSING
    """Continue the newest unfinished run that has this configuration."""
    resume_from: str | None = None
    """Run folder of an unfinished run to continue."""
    retry_failed: bool = MISSING
    """When a sweep is started again, also run its failed jobs again."""
    output_dir: str = MISSING
    """Folder of run folders and of the tracking database; $CRUX_OUTPUTS if not given."""
    sweep_name: str | None = None
    """Name of the sweep: its folder in <output_dir>/sweeps and its tag in MLflow; null: the grid's command line."""
    report_l0: list[Rate] = MISSING
    """L0 values at which the report of a sweep compares losses."""
    report_geometry: ReportGeometry = MISSING
    """Compare the dictionaries of a sweep's SAEs in its report, with a view by PCA, or by UMAP too."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks for the training, by names of your choice: each has _target_ and the arguments of its class."""
    trainer: Display = MISSING
    tracking: Tracking = MISSING

    runner: ClassVar[str]
    """Dotted name of the function that runs such a job: `run(config, folder=...)`."""
    trains: ClassVar[bool] = False
    """True if the job trains with Lightning, so that `callbacks` have an effect."""
    checks: ClassVar[str | None] = None
    """Dotted name of a torch-free module with `check_job(config, given)` and `check_subject(config)`; None: only bounds are checked."""

    def check(self, given: Collection[str]) -> None:
        """Check conditions that bounds cannot express and that do not need the subject.

        Args:
            given: the keys on the command line.

        Raises:
            UserError: for the first problem, in one line.
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
        """Return the readable name of the run, such as `e2e_ds L6 λ=1.5`."""
        raise NotImplementedError

    def mlflow_params(self) -> dict[str, object]:
        """Return the scalars by which runs are compared; the whole configuration is an artifact."""
        return {"seed": self.seed}

    def mlflow_tags(self) -> dict[str, str | None]:
        """Return the tags by which people filter runs; None leaves one out."""
        return {}


def to_plain(config: object) -> dict[str, Any]:
    """Return a configuration as plain containers, as it is written to config.yaml and compared on resuming."""

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
