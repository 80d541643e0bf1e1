"""A program: instances of one toy model that train side by side, on disk as a folder that is a subject too.

`config.json` says which model and which features; `model.safetensors` holds the weights, and of every instance its seed, its
densities, its importances and the loss that it reached.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor

from crux.config.files import write_tensors
from crux.config.progress import track
from crux.toy.features import FeatureBatches, FeatureDistribution, Purpose
from crux.toy.options import Kind, Together
from crux.toy.superposition import SuperpositionModel, Weights, error, tensors, weights_of


class Program(NamedTuple):
    """Instances of a toy model that are trained side by side. A stream is data; a setting is an instance that sees it."""

    name: str
    """Name of its folder."""
    kind: Kind
    n_hidden: int
    features: FeatureDistribution
    seeds: Int[Tensor, "stream"]
    density: Float[Tensor, "stream n_features"]
    importance: Float[Tensor, "stream setting n_features"]
    points: int | None
    """Train on so many points, the same in every step; None: fresh data in each."""

    @property
    def n_features(self) -> int:
        return self.density.shape[-1]

    def data(self, *, batch: int, n_batches: int, purpose: Purpose) -> FeatureBatches:
        """Return the streams' data for training, or held out from it; finite data are those of training."""
        return FeatureBatches(
            self.features,
            seeds=self.seeds,
            density=self.density,
            batch=batch,
            n_batches=n_batches,
            points=self.points if purpose is Purpose.training else None,
            purpose=purpose,
        )


class Trained(NamedTuple):
    """A trained program."""

    program: Program
    weights: Weights
    loss: Float[Tensor, "stream setting"]
    """Σ_i I_i (y_i − y'_i)² on held-out data, mean over samples."""
    snapshots: dict[int, Weights]
    """The weights after some steps."""

    @property
    def model(self) -> SuperpositionModel:
        return SuperpositionModel(self.program.kind, self.weights)


def grid(*, seeds: Sequence[int], density: Float[Tensor, "density n_features"]) -> tuple[Tensor, Tensor]:
    """Return streams for every density and seed, seeds running fastest: (seeds [stream], density [stream n_features])."""
    every_seed = torch.tensor(list(seeds)).repeat(len(density))
    return every_seed, density.repeat_interleave(len(seeds), dim=0)


@torch.no_grad()
def held_out_loss(program: Program, weights: Weights, *, samples: int, batch: int) -> Float[Tensor, "stream setting"]:
    """Return the mean error of each instance on fresh samples of its stream, `batch` at a time."""
    n_batches = -(-samples // batch)
    model = SuperpositionModel(program.kind, weights)
    data = program.data(batch=batch, n_batches=n_batches, purpose=Purpose.held_out)
    total = torch.zeros(program.importance.shape[:2], dtype=torch.float64)
    for i in track(range(n_batches), "held-out loss of the instances"):
        total += error(model, data[i].to(weights.W.device), program.importance).double()
    return total / n_batches


def save(folder: Path, trained: Trained) -> None:
    """Write the folder's files; its snapshots are there already."""
    program = trained.program
    about = {
        "model_type": "superposition",
        "kind": program.kind.value,
        "n_features": program.n_features,
        "n_hidden": program.n_hidden,
        "features": {
            "together": program.features.together.value,
            "n_sets": program.features.n_sets,
            "signed": program.features.signed,
            "unit": program.features.unit,
        },
        "points": program.points,
        "instances": list(program.importance.shape[:2]),
    }
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    found = tensors(trained.weights) | {
        "seeds": program.seeds,
        "density": program.density,
        "importance": program.importance,
        "loss": trained.loss,
    }
    write_tensors(folder / "model.safetensors", found)


def load(folder: Path) -> Trained:
    """Read what `save` wrote, with its snapshots."""
    about = json.loads((folder / "config.json").read_text("utf-8"))
    found = load_file(folder / "model.safetensors")
    how = about["features"]
    program = Program(
        name=folder.name,
        kind=Kind(about["kind"]),
        n_hidden=about["n_hidden"],
        features=FeatureDistribution(Together(how["together"]), how["n_sets"], how["signed"], how["unit"]),
        seeds=found["seeds"],
        density=found["density"],
        importance=found["importance"],
        points=about["points"],
    )
    kept = sorted((folder / "snapshots").glob("*.safetensors"), key=lambda p: int(p.stem))
    snapshots = {int(p.stem): weights_of(load_file(p)) for p in kept}
    return Trained(program, weights_of(found), found["loss"], snapshots)
