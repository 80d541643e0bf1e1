"""The configuration: every key's type, unit and meaning. Values live in conf/, once; nothing here has a default but `None`.

Imports nothing heavy: `--help` and every mistake in a command line answer from here.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Task(Enum):
    """What a job does; set by the experiment file."""

    train = "train"
    pretrain = "pretrain"
    report = "report"


class Init(Enum):
    """An SAE's initial weights."""

    paper = "paper"
    tied = "tied"


class Precision(Enum):
    """`auto`: float32 on the CPU, bfloat16 on CUDA."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class OptimizerName(Enum):
    """Adam is the paper's; AdamW decouples the weight decay."""

    adam = "adam"
    adamw = "adamw"


@dataclass
class Model:
    """The subject: the frozen network under study."""

    name: str = MISSING
    """`tiny` (packaged) or a name on the Hugging Face hub, such as `gpt2`."""
    path: str | None = None
    """A local folder in Hugging Face layout (config.json, model.safetensors, tokenizer.json); goes before the name."""
    process_weights: bool = MISSING
    """TransformerLens's weight processing: LayerNorm folded, weights centred. Fixes the basis the SAE lives in."""
    n_layers: int | None = None
    """Blocks of a hub model, so that a wrong layer is refused before the hub is asked."""
    context: int = MISSING
    """Tokens a sequence, for training and judgement."""


@dataclass
class Data:
    """The text."""

    path: str | None = None
    """Text, JSONL or Parquet file, or a folder of them; goes before the packaged text."""
    name: str | None = None
    """A data set on the Hugging Face hub."""
    config: str | None = None
    """The hub data set's configuration (subset)."""
    revision: str | None = None
    """The hub data set's commit or branch."""
    split: str = MISSING
    """The hub data set's split."""
    column: str | None = None
    """Column with the text, or with token ids (`input_ids`); found by itself where not given."""
    max_tokens: int | None = None
    """Most training tokens to prepare; all, where not given."""
    held_out_tokens: int = MISSING
    """Most held-out tokens to prepare."""
    shuffle_batches: int = MISSING
    """Micro-batches whose activations are shuffled together for the local loss."""


@dataclass
class Sae:
    """The sparse autoencoder."""

    name: str = MISSING
    ratio: float | None = None
    """Latents a dimension of the activation; or give n_latents."""
    n_latents: int | None = None
    init: Init = MISSING
    init_norm: float = MISSING
    """Norm of the encoder's directions under init=tied."""
    normalize_activations: bool = MISSING
    """Scale inputs by one constant so that their mean norm is √d_model; folded away on saving."""
    bias_at_mean: bool = MISSING
    """Start the decoder bias at the mean activation."""


@dataclass
class Loss:
    """reconstruction · MSE + kl · KL + downstream · mean MSE later + sparsity · ‖c‖₁/d_model."""

    name: str = MISSING
    reconstruction: float = MISSING
    """Coefficient of the MSE at the hook point itself."""
    kl: float = MISSING
    """Coefficient of KL(clean ‖ spliced), nats a token."""
    downstream: float = MISSING
    """Total coefficient of the MSE at later positions; each has it divided by their number."""
    downstream_hooks: list[str] | None = None
    """The later positions; every later hook_resid_pre and the last hook_resid_post, where not given."""
    default_sparsity: float = MISSING
    """λ where `sparsity` is not given; found on model=tiny."""
    skip_positions: list[int] = MISSING
    """Positions in the sequence that the loss leaves out (0: the attention sink)."""
    max_norm: float | None = None
    """Tokens whose activation is longer than this are left out of the loss; activation units."""


@dataclass
class Optimizer:
    """How the SAE's weights move."""

    name: OptimizerName = MISSING
    lr: float = MISSING
    betas: list[float] = MISSING
    eps: float = MISSING
    weight_decay: float = MISSING
    warmup_steps: int = MISSING
    """Linear warm-up; step 0 already moves."""
    min_lr_factor: float = MISSING
    """Where the cosine ends, as a share of lr."""
    clip: float = MISSING
    """Gradient norm is clipped to this."""


@dataclass
class Trainer:
    """How long, in what pieces, on what."""

    max_steps: int = MISSING
    """Optimiser steps."""
    batch: int = MISSING
    """Sequences a micro-batch."""
    accumulate: int = MISSING
    """Micro-batches an optimiser step."""
    accelerator: str = MISSING
    """auto, cpu or cuda."""
    precision: Precision = MISSING
    log_every: int = MISSING
    """Steps between rows of the history."""
    val_every: int = MISSING
    """Steps between short judgements; 0: none."""
    checkpoint_every: int = MISSING
    """Steps between checkpoints."""
    progress: bool = MISSING
    """Show progress bars."""


@dataclass
class Evaluation:
    """The judgement on held-out text."""

    tokens: int = MISSING
    """Held-out tokens of the judgement at the end."""
    val_tokens: int = MISSING
    """Held-out tokens of the short one during training."""
    alive_window: int = MISSING
    """alive_train_<N>: a latent is alive if it fired in the last N training tokens (the paper's 500,000)."""
    latents: int = MISSING
    """Latents on the HTML page; 0: no page."""


@dataclass
class Tracking:
    """Where runs are compared."""

    mlflow: bool = MISSING
    experiment: str = MISSING
    uri: str | None = None
    """Tracking server or database; sqlite in the outputs folder where neither this nor MLFLOW_TRACKING_URI is set."""


@dataclass
class Pretrain:
    """The packaged language model's making."""

    vocab_size: int = MISSING
    d_model: int = MISSING
    n_layers: int = MISSING
    n_heads: int = MISSING
    lr: float = MISSING
    """Peak learning rate of Muon (scaled to AdamW's RMS) and AdamW."""
    weight_decay: float = MISSING
    horizon: int = MISSING
    """Step at which the cosine schedule would reach zero."""
    cooldown_steps: int = MISSING
    """Over so many last steps the rate falls to zero on a line times the cosine."""
    stride: int = MISSING
    """Tokens between the windows that held-out bits per byte are measured on."""


@dataclass
class Config:
    """One job."""

    task: Task = MISSING
    layer: int = MISSING
    """Block whose input residual stream the SAE reads."""
    hook_point: str = MISSING
    """TransformerLens name of the place; follows `layer` unless given."""
    sparsity: float = MISSING
    """λ."""
    seed: int = MISSING
    resume: bool = MISSING
    """Go on with the newest unfinished run of this very config."""
    resume_from: str | None = None
    """Go on with the run in this folder."""
    output_dir: str = MISSING
    """Where runs and the tracking database lie."""
    cache: str | None = None
    """Where tokenised text lies; $CRUX_CACHE or ~/.cache/crux where not given."""
    sweep_name: str = MISSING
    """The sweep's folder in `<output_dir>/sweeps`, and its tag in MLflow."""
    report_l0: list[float] = MISSING
    """L0 values at which experiment=report compares losses."""
    model: Model = MISSING
    data: Data = MISSING
    sae: Sae = MISSING
    loss: Loss = MISSING
    optimizer: Optimizer = MISSING
    trainer: Trainer = MISSING
    evaluation: Evaluation = MISSING
    tracking: Tracking = MISSING
    pretrain: Pretrain | None = None


def to_plain(config: Config) -> dict[str, Any]:
    """The configuration as plain containers: what is written to config.yaml and compared on resuming."""

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

    return plain(asdict(config))


def register() -> None:
    """Puts the schemas where Hydra's defaults lists find them."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    groups: dict[str, Any] = {
        "model": Model, "data": Data, "sae": Sae, "loss": Loss, "optimizer": Optimizer, "trainer": Trainer,
        "evaluation": Evaluation, "tracking": Tracking,
    }  # fmt: skip
    for group, schema in groups.items():
        store.store(group=group, name="schema", node=schema)
