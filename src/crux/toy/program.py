"""A program: instances of one toy model that train together as one tensor program.

Its folder can be used as a subject. `config.json` describes the model and its features; `model.safetensors` holds the weights
and, per instance, its seed, densities, importances and final loss.
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
from crux.toy.options import Cooccurrence, Kind
from crux.toy.superposition import SuperpositionModel, Weights, sampled_loss, weights_from_tensors, weights_to_tensors


class Program(NamedTuple):
    """Instances of a toy model that are trained together.

    A stream is a sequence of data, drawn with one seed and one density per feature. Its settings are the instances that see these data;
    they differ in the importances of the features.
    """

    name: str
    """Name of its folder."""
    kind: Kind
    n_hidden: int
    distribution: FeatureDistribution
    seeds: Int[Tensor, "stream"]
    density: Float[Tensor, "stream n_features"]
    importance: Float[Tensor, "stream setting n_features"]
    points: int | None
    """Number of training points, the same in every step; None: fresh data in each step."""

    @property
    def n_features(self) -> int:
        return self.density.shape[-1]

    def data(self, *, batch: int, n_batches: int, purpose: Purpose) -> FeatureBatches:
        """Return the data of the streams. With finite data, only `Purpose.training` gets the training points."""
        return FeatureBatches(
            self.distribution,
            seeds=self.seeds,
            density=self.density,
            batch=batch,
            n_batches=n_batches,
            points=self.points if purpose is Purpose.training else None,
            purpose=purpose,
        )


class TrainedProgram(NamedTuple):
    """A program with its trained weights."""

    program: Program
    weights: Weights
    loss: Float[Tensor, "stream setting"]
    """Σ_i I_i (y_i − y'_i)² on held-out data, mean over samples."""
    snapshots: dict[int, Weights]
    """The weights during training, by step."""

    @property
    def model(self) -> SuperpositionModel:
        return SuperpositionModel(self.program.kind, self.weights)


def build_streams(*, seeds: Sequence[int], density: Float[Tensor, "density n_features"]) -> tuple[Tensor, Tensor]:
    """Return one stream per density and seed, ordered by density: (seeds [stream], density [stream n_features])."""
    every_seed = torch.tensor(list(seeds)).repeat(len(density))
    return every_seed, density.repeat_interleave(len(seeds), dim=0)


@torch.no_grad()
def held_out_loss(program: Program, weights: Weights, *, samples: int, batch: int) -> Float[Tensor, "stream setting"]:
    """Return the mean loss of each instance on fresh samples of its stream, `batch` samples at a time."""
    n_batches = -(-samples // batch)
    model = SuperpositionModel(program.kind, weights)
    data = program.data(batch=batch, n_batches=n_batches, purpose=Purpose.held_out)
    total = torch.zeros(program.importance.shape[:2], dtype=torch.float64)
    for i in track(range(n_batches), "held-out loss of the instances"):
        total += sampled_loss(model, data[i].to(weights.W.device), program.importance).double()
    return total / n_batches


def save_program(folder: Path, trained: TrainedProgram) -> None:
    """Write the folder of a trained program, except for its snapshots, which are written during training."""
    program = trained.program
    config = {
        "model_type": "superposition",
        "kind": program.kind.value,
        "n_features": program.n_features,
        "n_hidden": program.n_hidden,
        "features": {
            "together": program.distribution.together.value,
            "n_sets": program.distribution.n_sets,
            "signed": program.distribution.signed,
            "unit": program.distribution.unit,
        },
        "points": program.points,
        "instances": list(program.importance.shape[:2]),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    arrays = weights_to_tensors(trained.weights) | {
        "seeds": program.seeds,
        "density": program.density,
        "importance": program.importance,
        "loss": trained.loss,
    }
    write_tensors(folder / "model.safetensors", arrays)


def load_program(folder: Path) -> TrainedProgram:
    """Read what `save_program` wrote, with the snapshots."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    arrays = load_file(folder / "model.safetensors")
    features = config["features"]
    program = Program(
        name=folder.name,
        kind=Kind(config["kind"]),
        n_hidden=config["n_hidden"],
        distribution=FeatureDistribution(
            Cooccurrence(features["together"]), features["n_sets"], features["signed"], features["unit"]
        ),
        seeds=arrays["seeds"],
        density=arrays["density"],
        importance=arrays["importance"],
        points=config["points"],
    )
    files = sorted((folder / "snapshots").glob("*.safetensors"), key=lambda p: int(p.stem))
    snapshots = {int(p.stem): weights_from_tensors(load_file(p)) for p in files}
    return TrainedProgram(program, weights_from_tensors(arrays), arrays["loss"], snapshots)
