"""The options of `experiment=read`, which reads the latents of a saved SAE. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from annotated_types import Ge, Le, MinLen
from omegaconf import MISSING

from crux.config.schema import Count, CountOrZero, Data, Device, Job, LanguageModel, Rate, TokenCount
from crux.sae.llm_options import Llm


@dataclass
class SavedSae:
    """The SAE whose latents are read."""

    path: str = MISSING
    """Run folder of the SAE, or the folder with its cfg.json and sae_weights.safetensors."""
    force: bool = MISSING
    """Read the SAE on another model, with another weight processing or at another hook point than its metadata name, too."""


@dataclass
class Reading:
    """What is computed, and from how much text."""

    fit_tokens: TokenCount = MISSING
    """Number of training tokens on which rules are fitted."""
    held_out_tokens: TokenCount = MISSING
    """Number of held-out tokens on which they are scored."""
    n_rules: Count = MISSING
    """Number of rules per latent that are shown and scored as ρ@n; the other numbers in the tables are fixed."""
    controls: CountOrZero = MISSING
    """Number of latents, spread over the densities, that are compared with control directions; 0: no controls."""
    influence_windows: CountOrZero = MISSING
    """Number of held-out sequences on which the influence of all latents is measured; 0: no influence."""
    influence_draws: Annotated[int, Ge(2), Le(1000)] = MISSING
    """Number of draws of labels for the influence; even."""
    ablations: CountOrZero = MISSING
    """Number of latents that are ablated exactly, to check the influence; 0: none."""
    effects: CountOrZero = MISSING
    """Number of latents, the most influential ones, whose effects on the predictions are measured; 0: none."""
    rewriting_tokens: CountOrZero = MISSING
    """Number of held-out tokens on which codes are replaced by their rules' predictions; 0: no rewritten CE."""
    residual_tokens: CountOrZero = MISSING
    """Number of held-out tokens on which the residual error is compared with noise; 0: none."""
    steered: CountOrZero = MISSING
    """Number of latents that are steered with, next to as many control directions of each kind; 0: no steering."""
    probing: CountOrZero = MISSING
    """Number of tokens of each of five splits on which probes of properties of the text are trained, and of those on which they are tested;
    0: no probing."""
    saebench_tokens: CountOrZero = MISSING
    """Number of held-out tokens for SAEBench's core metrics, which saebench_core.json has; 0: none."""
    meta_sae_steps: CountOrZero = MISSING
    """Training steps of a meta-SAE on the SAE's decoder directions, which shows how far latents are composed of shared parts; 0: none.
    1,500 take about a minute on two cores."""
    budget: Rate = MISSING
    """KL divergence that steering and effects may cost, in nats per steered context."""


@dataclass
class SavedSaeJob(Job):
    """The options that all jobs about saved SAEs have."""

    hook_point: str | None = None
    """TransformerLens name of the hook point that the SAEs read; null: the one in their metadata."""
    cache: str | None = None
    """Folder for tokenised text and sparse codes; null: $CRUX_CACHE or ~/.cache/crux."""
    model: LanguageModel = MISSING
    data: Data = MISSING
    trainer: Device = MISSING  # pyright: ignore[reportIncompatibleVariableOverride]
    batch: Count = MISSING
    """Sequences per pass."""


@dataclass
class ReadJob(SavedSaeJob):
    """A job that reads the latents of a saved SAE: what activates them, and what the network does with them."""

    sae: SavedSae = MISSING
    against: str | None = None
    """Run folder or folder of a second SAE, whose dictionary is compared with that of the first."""
    reading: Reading = MISSING
    llm: Llm = MISSING
    report_sizes: Annotated[list[Count], MinLen(1)] = MISSING
    """Numbers of rules per latent in the tables."""

    runner: ClassVar[str] = "crux.sae.read_job.run"
    checks: ClassVar[str | None] = "crux.sae.read_checks"

    def run_name(self) -> str:
        return f"read {Path(self.sae.path).resolve().name}"

    def mlflow_params(self) -> dict[str, object]:
        return {
            "experiment": "read",
            "seed": self.seed,
            "sae": self.sae.path,
            "model": self.model.path or self.model.name,
        }
