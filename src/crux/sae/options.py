"""The options of jobs that train SAEs on language models. Torch-free."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Le, MinLen
from omegaconf import MISSING

from crux.config.schema import (
    BatchTrainer,
    Count,
    CountOrZero,
    Data,
    Files,
    HubData,
    Job,
    LanguageModel,
    Optimizer,
    Precision,
    Rate,
    RateOrZero,
    TokenCount,
    Trainer,
)
from crux.sae.architectures.options import OPTIONS as ARCHITECTURES
from crux.sae.architectures.options import SaeOptions
from crux.sae.compare_options import CompareJob
from crux.sae.export_options import ExportJob
from crux.sae.losses.options import OPTIONS as LOSSES
from crux.sae.losses.options import LossOptions
from crux.sae.read_options import ReadJob


class Strategy(Enum):
    """The number of devices: one, or several with one process each (trainer=ddp)."""

    single = "single"
    ddp = "ddp"


@dataclass
class SaeTrainer(BatchTrainer):
    """Training of SAEs: length, batches, devices and logging."""

    accumulate: Count = MISSING
    """Micro-batches per optimiser step."""
    strategy: Strategy = MISSING
    """One device, or one process on each of several; trainer=ddp sets it."""
    devices: Count | None = None
    """Number of devices that share each micro-batch; null: every GPU."""
    precision: Precision = MISSING
    """Precision of the computation; auto: bfloat16 on CUDA, float32 on the CPU. The SAE's weights stay in float32."""
    val_every: CountOrZero = MISSING
    """Steps between short evaluations during training; 0: none."""


@dataclass
class Evaluation:
    """Evaluation on held-out text."""

    tokens: TokenCount = MISSING
    """Number of held-out tokens of the evaluation at the end."""
    val_tokens: TokenCount = MISSING
    """Number of held-out tokens of the short evaluations during training."""
    alive_window: TokenCount = MISSING
    """N of alive_train_<N>: a latent is alive if it fired in the last N training tokens (500,000 in Braun et al. 2405.12241)."""
    latents: CountOrZero = MISSING
    """Largest number of latents on the HTML page; of a larger dictionary it shows so many alive latents; 0: no page."""


@dataclass
class SparseTraining(Job):
    """The options of every job that trains SAEs, on any subject."""

    sparsity: RateOrZero = MISSING
    """λ, the coefficient of the sparsity penalty; its initial value if target_l0 is given; 0 if k fixes L0."""
    sae: SaeOptions = MISSING
    optimizer: Optimizer = MISSING
    trainer: Trainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class SaeJob(SparseTraining):
    """A job that trains one or several SAEs on a language model and evaluates them."""

    layer: Annotated[int, Le(10**6)] = MISSING
    """Block whose input (residual stream) the SAE reads, from 0."""
    hook_point: str = MISSING
    """TransformerLens name of the hook point that the SAE reads, instead of layer."""
    hook_points: Annotated[list[str], MinLen(1)] | None = None
    """Several hook points in the network's order, each with an SAE of its own; takes precedence over hook_point."""
    target_l0: Rate | None = None
    """Adjust λ during training until each SAE has this L0, the mean number of latents that fire per token; null: constant λ."""
    sparsities: Annotated[list[RateOrZero], MinLen(1)] | None = None
    """Train one SAE for each of these λ at once, on the same clean passes; each is a run (sae=relu)."""
    ks: Annotated[list[Count], MinLen(1)] | None = None
    """Train one SAE for each of these k at once, on the same clean passes; each is a run (sae=topk)."""
    cache: str | None = None
    """Folder for tokenised text; null: $CRUX_CACHE or ~/.cache/crux."""
    model: LanguageModel = MISSING
    data: Data = MISSING
    loss: LossOptions = MISSING
    trainer: SaeTrainer = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    evaluation: Evaluation = MISSING

    runner: ClassVar[str] = "crux.sae.job.run"
    trains: ClassVar[bool] = True
    checks: ClassVar[str | None] = "crux.sae.checks"

    @property
    def hooks_read(self) -> list[str]:
        """The hook points that the job's SAEs read, in the network's order."""
        return self.hook_points if self.hook_points is not None else [self.hook_point]

    @property
    def sites(self) -> list[tuple[str, str]]:
        """The hook points that each SAE reads and writes, in the network's order."""
        return [(hook, self.sae.output_hook or hook) for hook in self.hooks_read]

    @property
    def tokens(self) -> int:
        """The number of training tokens of the whole run."""
        return self.trainer.max_steps * self.trainer.batch * self.trainer.accumulate * self.model.context

    def per_sae(self) -> dict[str, "SaeJob"]:
        """Return one configuration per SAE, keyed by folder name, if the job trains several runs; otherwise an empty dict."""
        if self.sparsities is not None:
            return {
                f"sparsity={str(float(value)).removesuffix('.0')}": replace(self, sparsities=None, sparsity=value)
                for value in self.sparsities
            }
        if self.ks is not None:
            return {f"k={k}": replace(self, ks=None, sae=replace(self.sae, k=k)) for k in self.ks}  # pyright: ignore[reportCallIssue]
        return {}

    def run_name(self) -> str:
        words = [] if self.sae.name == "relu" else [self.sae.name]
        layers = [re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", hook) for hook in self.hooks_read]
        place = "L" + ",".join(layer[1] for layer in layers if layer) if all(layers) else ",".join(self.hooks_read)
        place += f"→{self.sae.output_hook}" if self.sae.output_hook is not None else ""
        return " ".join([*words, self.loss.name, place, self._sparsity_name()])

    def _sparsity_name(self) -> str:
        for symbol, values in (("λ", self.sparsities), ("k", self.ks)):
            if values is not None:
                return f"{symbol}={','.join(f'{v:g}' for v in values)}"
        if self.sae.fixed_k:
            return f"k={self.sae.arguments['k']}"
        return f"λ={self.sparsity:g}" if self.target_l0 is None else f"L0={self.target_l0:g}"

    def mlflow_params(self) -> dict[str, object]:
        several_runs = self.sparsities is not None or self.ks is not None  # each run has its own value
        params = {
            "loss": self.loss.name,
            "layer": self.layer if self.hook_points is None else None,
            "hook_point": ",".join(self.hooks_read),
            "sparsity": None if several_runs else self.sparsity,
            "target_l0": self.target_l0,
            "k": None if several_runs else self.sae.arguments.get("k"),
            "seed": self.seed,
            "sae": self.sae.name,
            "model": self.model.path or self.model.name,
            "data": text_name(self.data),
            "lr": self.optimizer.lr,
            "max_steps": self.trainer.max_steps,
            "tokens": self.tokens,
            **self.loss.numeric_options,
        }
        return {key: value for key, value in params.items() if value is not None}

    def mlflow_tags(self) -> dict[str, str | None]:
        layer = str(self.layer) if self.hook_points is None else None
        return {"loss": self.loss.name, "sae": self.sae.name, "layer": layer}


@dataclass
class ReportJob(Job):
    """A job that writes the tables and figures of a sweep again, from its run folders."""

    sweep: str | None = None
    """Name of the sweep; null: that of sweep_name."""

    runner: ClassVar[str] = "crux.sae.sweeps.report.run"

    def run_name(self) -> str:
        return f"report {self.sweep}"


@dataclass
class ScoreCalibration:
    """Planted explanations in a made-up text."""

    each: Count = MISSING
    """Number of planted latents of each kind: token, bigram, token within the last 8, conjunction."""
    vocab: Annotated[int, Ge(50), Le(100_000)] = MISSING
    """Number of tokens in the vocabulary of the text."""
    fit_tokens: TokenCount = MISSING
    """Number of tokens on which rules are fitted."""
    held_out_tokens: TokenCount = MISSING
    """Number of tokens on which they are scored."""


@dataclass
class ReadCalibrationJob(Job):
    """A job that checks the explanations of latents and their scores against known answers."""

    calibration: ScoreCalibration = MISSING

    runner: ClassVar[str] = "crux.sae.read_calibration.run"

    def run_name(self) -> str:
        return "read calibrate"

    def mlflow_params(self) -> dict[str, object]:
        return {"experiment": "read/calibrate", "seed": self.seed, **vars(self.calibration)}


def text_name(data: Data) -> str:
    """Return the name of the text in tables and metadata."""
    match data:
        case Files(path=str(path)):
            return path
        case HubData(name=name):
            return name
        case _:
            return "packaged"


def model_source(model: LanguageModel) -> str | Path:
    """Return the folder of the subject if one is given, otherwise its name."""
    return Path(model.path) if model.path is not None else model.name


OPTIONS: Mapping[str, Mapping[str, type]] = {
    "job": {
        "train": SaeJob,
        "sweep_report": ReportJob,
        "read_latents": ReadJob,
        "read_calibration": ReadCalibrationJob,
        "compare_latents": CompareJob,
        "export_latents": ExportJob,
    },
    "trainer": {"sae": SaeTrainer},
    "evaluation": {"default": Evaluation},
    **ARCHITECTURES,
    **LOSSES,
}
