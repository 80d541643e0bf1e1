"""The configuration: every key's type, unit and meaning. Values live in conf/, once; nothing here has a default but `None`.

Imports nothing heavy: `--help` and every mistake in a command line answer from here.
"""

from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from crux.config.errors import UserError
from crux.config.folder_name import shortened
from crux.degeneracy.options import Degeneracy, InteractionBasis, Llc
from crux.toy.options import Toy

HERE = Path(__file__).resolve().parents[1]
CHECKOUT = HERE.parents[1]
ROOT = CHECKOUT if (CHECKOUT / "conf" / "config.yaml").exists() else HERE
"""The folder of conf/ and sweeps/: the checkout, or the installed package."""


class Task(Enum):
    """What a job does; set by the experiment file."""

    train = "train"
    pretrain = "pretrain"
    report = "report"
    toy = "toy"
    llc = "llc"
    degeneracy = "degeneracy"
    interaction_basis = "interaction_basis"

    @property
    def named(self) -> bool:
        """Whether it runs one of crux/experiments/<task>/*.py, as `experiment_name` tells."""
        return self in (Task.llc, Task.degeneracy, Task.interaction_basis)


class Init(Enum):
    """An SAE's initial weights."""

    paper = "paper"
    tied = "tied"


class Target(Enum):
    """Whose loss the gradient is of: the text's next token, one drawn from the clean prediction, or the top logit."""

    data = "data"
    sampled = "sampled"
    top_logit = "top_logit"


class Precision(Enum):
    """`auto`: float32 on the CPU, bfloat16 on CUDA."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Strategy(Enum):
    """One device, or a process on each of several (trainer=ddp)."""

    single = "single"
    ddp = "ddp"


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
    """A local folder in Hugging Face layout (config.json, model.safetensors, tokenizer.json), or the run folder of a toy experiment; goes
    before the name."""
    process_weights: bool = MISSING
    """TransformerLens's weight processing: LayerNorm folded, weights centred. Fixes the basis the SAE lives in."""
    n_layers: int | None = None
    """Blocks of a hub model, so that a wrong layer is refused before the hub is asked."""
    context: int = MISSING
    """Tokens a sequence, for training and judgement; on a toy model a step sees trainer.batch · context samples."""
    instance: int | None = None
    """Which of a toy model's instances, settings running fastest; the one with the lowest loss where not given."""


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
class Auxk:
    """AuxK: dead latents reconstruct what the others leave (Gao et al. 2406.04093)."""

    coefficient: float = MISSING
    """Of the share of the residual's variance that they leave; 0: none."""
    k: int | None = None
    """Dead latents a token; half of the activation's dimensions where not given."""
    dead_after: int = MISSING
    """Training tokens without firing that make a latent dead."""


@dataclass
class Sae:
    """The sparse autoencoder. Below `start_from`: options of single architectures, null where they have no meaning."""

    _target_: str = MISSING
    """The architecture's class; what of the keys here its constructor names is handed to it."""
    name: str = MISSING
    ratio: float | None = None
    """Latents a dimension of the activation; or give n_latents."""
    n_latents: int | None = None
    init: Init = MISSING
    init_norm: float = MISSING
    """Norm of the encoder's directions under init=tied."""
    normalize_activations: bool = MISSING
    """Scale activations by one constant so that their mean norm is √d_model; folded away on saving."""
    bias_at_mean: bool = MISSING
    """Start the decoder bias at the mean activation."""
    subtract_b_dec: bool = MISSING
    """Encode x − b_dec; never in a transcoder."""
    sparsity_scale: float = MISSING
    """λ where `sparsity` is not given is the loss's default times this; 0 with a fixed k."""
    auxk: Auxk = MISSING
    output_hook: str | None = None
    """A later hook point, for a transcoder: read at the hook point, reconstruct this one."""
    start_from: str | None = None
    """Folder of a saved SAE of this architecture to start from."""
    k: int | None = None
    """Latents a token (BatchTopK: on average)."""
    beta: float | None = None
    """Weight of the gradient in the choice of latents, in units of its mean effect."""
    threshold: float | None = None
    """JumpReLU's first threshold, in units of the (normalised) activation."""
    bandwidth: float | None = None
    """Width of the straight-through estimators' kernel, in the same units."""
    threshold_rate: float | None = None
    """log θ moves with so many times `optimizer.lr`."""
    prefixes: list[float] | None = None
    """Shares of the dictionary that each reconstruct by themselves, besides the whole."""
    prefix_coefficient: float | None = None
    """Of each prefix's MSE."""
    p_end: float | None = None
    """The power of the penalty Σ c^p at the end; it begins at 1."""
    p_start: float | None = None
    """Share of the steps after which p begins to fall."""
    p_stop: float | None = None
    """Share of the steps after which p moves no more."""
    p_updates: int | None = None
    """Equal steps in which it falls."""


@dataclass
class Gradient:
    """The gradient that gradient_topk looks at."""

    target: Target = MISSING


@dataclass
class Loss:
    """reconstruction · MSE + kl · KL + downstream · mean MSE later + fisher · Fisher surrogate + λ · penalty."""

    _target_: str = MISSING
    """The class of the loss."""
    name: str = MISSING
    reconstruction: float = MISSING
    """Coefficient of the MSE at the hook point itself."""
    kl: float = 0.0
    """Coefficient of KL(clean ‖ spliced), nats a token."""
    downstream: float = 0.0
    """Total coefficient of the MSE at later positions; each has it divided by their number."""
    fisher: float = 0.0
    """Coefficient of ½ (Σ_t g_t·δ_t)² / T, nats a token: the KL's surrogate by the network's own label gradients."""
    block_diagonal: bool = False
    """Drop the surrogate's terms between positions: ½ (g_t·δ_t)²."""
    finetune_share: float = 0.0
    """Share of the steps, the last ones, that train ½ (MSE + α KL) with α = (MSE / KL).detach()."""
    downstream_hooks: list[str] | None = None
    """The later positions; every later hook_resid_pre and the last hook_resid_post, where not given."""
    default_sparsity: float = MISSING
    """λ where `sparsity` is not given, before the architecture's scale; found on model=tiny."""
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
    """Sequences a micro-batch, over all devices together."""
    accumulate: int = MISSING
    """Micro-batches an optimiser step."""
    strategy: Strategy = MISSING
    devices: int | None = None
    """Processes that share each micro-batch; every GPU where not given."""
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
    hook_points: list[str] | None = None
    """Several places, each with its SAE, in the network's order; goes before hook_point."""
    sparsity: float = MISSING
    """λ; where it begins, with target_l0."""
    target_l0: float | None = None
    """Steer λ until each SAE fires so many latents a token."""
    sparsities: list[float] | None = None
    """Train an SAE for each of these λ at once, on one clean pass, each a run of its own (sae=relu)."""
    ks: list[int] | None = None
    """Likewise for each of these k (sae=topk)."""
    seed: int = MISSING
    resume: bool = MISSING
    """Go on with the newest unfinished run of this very config."""
    resume_from: str | None = None
    """Go on with the run in this folder."""
    retry_failed: bool = MISSING
    """A sweep that is started again tries those of its jobs again that failed."""
    output_dir: str = MISSING
    """Where runs and the tracking database lie."""
    cache: str | None = None
    """Where tokenised text lies; $CRUX_CACHE or ~/.cache/crux where not given."""
    sweep_name: str | None = None
    """The sweep's folder in `<output_dir>/sweeps`, and its tag in MLflow; a grid without one is named by its command line."""
    sweep: str | None = None
    """The sweep that experiment=report is about."""
    report_l0: list[float] = MISSING
    """L0 values at which a sweep's report compares losses."""
    model: Model = MISSING
    data: Data = MISSING
    sae: Sae = MISSING
    gradient: Gradient = MISSING
    loss: Loss = MISSING
    optimizer: Optimizer = MISSING
    trainer: Trainer = MISSING
    evaluation: Evaluation = MISSING
    tracking: Tracking = MISSING
    pretrain: Pretrain | None = None
    toy: Toy | None = None
    llc: Llc | None = None
    degeneracy: Degeneracy | None = None
    interaction_basis: InteractionBasis | None = None


def experiment_name(config: Config) -> tuple[str, str]:
    """`("llc", "calibrate")`: the experiment in crux/experiments/<group>/<name>.py that runs, where the task is a named one.

    Raises:
        UserError: where the task asks for one and none was chosen.
    """
    group = config.task.value
    chosen = getattr(config, group)
    if chosen is None:
        raise UserError(f"task={group}: choose an experiment, experiment={group}/…")
    return group, chosen.experiment.value


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


def log_space(first: float, last: float, n: int) -> list[float]:
    """n numbers from first to last, in equal ratios."""
    return [float(f"{first * (last / first) ** (i / (n - 1)):.6g}") for i in range(n)]


def register_resolvers() -> None:
    """The arithmetic that YAML needs; in every process that resolves a configuration."""
    OmegaConf.register_new_resolver("times", lambda a, b: a * b, replace=True)
    OmegaConf.register_new_resolver("when", lambda a, b, then, other: then if a == b else other, replace=True)
    OmegaConf.register_new_resolver("shortened", shortened, replace=True)
    OmegaConf.register_new_resolver("log_space", log_space, replace=True)


register_resolvers()  # a sweep's jobs may be unpickled in another process, and their folder's name resolved there


def register() -> None:
    """Puts the schemas where Hydra's defaults lists find them."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    groups: dict[str, Any] = {
        "model": Model, "data": Data, "sae": Sae, "loss": Loss, "optimizer": Optimizer, "trainer": Trainer,
        "evaluation": Evaluation, "tracking": Tracking, "toy": Toy, "llc": Llc,
        "degeneracy": Degeneracy, "interaction_basis": InteractionBasis,
    }  # fmt: skip
    for group, schema in groups.items():
        store.store(group=group, name="schema", node=schema)
