"""The options of `experiment=export`, which writes the latents of a saved SAE in another tool's format. Torch-free."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from crux.config.schema import TokenCount
from crux.sae.read_options import SavedSae, SavedSaeJob


class ExportFormat(Enum):
    """The formats in which latents can be written."""

    neuronpedia = "neuronpedia"


@dataclass
class Neuronpedia:
    """The names of the SAE and of its authors in an export for Neuronpedia."""

    model_id: str | None = None
    """Neuronpedia's id of the model; null: the model's name."""
    set_name: str = MISSING
    """Name of the set of SAEs to which it belongs, such as res-crux; the SAE's id is <layer>-<set name>."""
    release: str = MISSING
    """Name of the release of which the set is a part."""
    creator: str = MISSING
    """Name of who made the SAE."""
    creator_id: str = MISSING
    """Neuronpedia's id of the account to which everything belongs."""
    url: str | None = None
    """Address with more about the SAE; null: none."""
    vectors: bool = MISSING
    """Write the direction of each latent too, which steering needs."""


@dataclass
class ExportJob(SavedSaeJob):
    """A job that writes the latents of a saved SAE in another tool's format."""

    format: ExportFormat = MISSING
    """Format of the files."""
    sae: SavedSae = MISSING
    read: str | None = None
    """Run folder of an experiment=read of this SAE, whose text is used and whose rules or LLM explanations are written; null: none."""
    tokens: TokenCount = MISSING
    """Number of held-out tokens from which densities, histograms and contexts are, unless a reading is given."""
    neuronpedia: Neuronpedia = MISSING

    runner: ClassVar[str] = "crux.sae.export_job.run"
    checks: ClassVar[str | None] = "crux.sae.export_checks"

    def run_name(self) -> str:
        return f"export {Path(self.sae.path).resolve().name}"

    def mlflow_params(self) -> dict[str, object]:
        return {
            "experiment": "export",
            "format": self.format.value,
            "sae": self.sae.path,
            "model": self.model.path or self.model.name,
        }
