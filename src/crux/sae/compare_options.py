"""The options of `experiment=read/compare`, which compares several saved SAEs at one hook point. Torch-free."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import MinLen
from omegaconf import MISSING

from crux.config.schema import Count, CountOrZero, Rate, TokenCount
from crux.sae.read_options import SavedSaeJob


@dataclass
class Comparing:
    """The numbers of rules, latents and tokens of the comparison."""

    fit_tokens: TokenCount = MISSING
    """Number of training tokens on which rules are fitted."""
    held_out_tokens: TokenCount = MISSING
    """Number of held-out tokens on which codes are compared."""
    total_rules: list[Count] = MISSING
    """Numbers of rules that each SAE gets, over all of its latents; []: no rewritten CE."""
    rewriting_tokens: Count = MISSING
    """Number of held-out tokens on which codes are replaced by their rules' predictions."""
    steered: CountOrZero = MISSING
    """Number of latents of each SAE that are steered with; 0: no steering."""
    budget: Rate = MISSING
    """KL divergence that steering may cost, in nats per steered context."""


@dataclass
class CompareJob(SavedSaeJob):
    """A job that compares saved SAEs at one hook point of one model."""

    saes: Annotated[list[str], MinLen(2)] = MISSING
    """Run folders or folders of the SAEs; the others are compared with the first."""
    force: bool = MISSING
    """Compare SAEs on another model, with another weight processing or at another hook point than their metadata name, too."""
    comparing: Comparing = MISSING

    runner: ClassVar[str] = "crux.sae.compare_job.run"
    checks: ClassVar[str | None] = "crux.sae.compare_checks"

    def run_name(self) -> str:
        return f"compare {len(self.saes)} SAEs"

    def mlflow_params(self) -> dict[str, object]:
        return {
            "experiment": "read/compare",
            "seed": self.seed,
            "saes": ", ".join(self.saes),
            "model": self.model.path or self.model.name,
        }
