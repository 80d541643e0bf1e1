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
from torch import Tensor

from crux.config.checked_tensors import read_checked_tensors, write_checked_tensors
from crux.config.errors import UserError
from crux.config.files import write_text
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
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    arrays = weights_to_tensors(trained.weights) | {
        "seeds": program.seeds,
        "density": program.density,
        "importance": program.importance,
        "loss": trained.loss,
    }
    write_checked_tensors(folder / "model.safetensors", arrays)


def load_program(folder: Path) -> TrainedProgram:
    """Read what `save_program` wrote, with the snapshots.

    Raises:
        UserError: if a file is damaged, or the files do not belong together.
    """
    arrays = read_checked_tensors(folder / "model.safetensors", required=False)
    files = sorted((folder / "snapshots").glob("*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        program = _parse_program(folder.name, config, arrays)
        weights = weights_from_tensors(arrays)
        snapshots = {int(path.stem): weights_from_tensors(read_checked_tensors(path, required=False)) for path in files}
    except (KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder} is damaged: its files do not describe a toy model ({type(error).__name__})"
        ) from error
    streams, settings = program.importance.shape[:2]
    shapes = (program.n_hidden, program.n_features)
    if (
        [streams, settings] != config["instances"]
        or weights.W.shape != (streams, settings, *shapes)
        or weights.b.shape != (streams, settings, program.n_features)
        or not all(bool(tensor.isfinite().all()) for tensor in arrays.values())
    ):
        raise UserError(f"{folder} is damaged: its weights do not fit its config.json, or are not finite")
    return TrainedProgram(program, weights, arrays["loss"], dict(sorted(snapshots.items())))


def _parse_program(name: str, config: dict, arrays: dict[str, Tensor]) -> Program:  # pyright: ignore[reportMissingTypeArgument]
    features = config["features"]
    return Program(
        name=name,
        kind=Kind(config["kind"]),
        n_hidden=int(config["n_hidden"]),
        distribution=FeatureDistribution(
            Cooccurrence(features["together"]), features["n_sets"], features["signed"], features["unit"]
        ),
        seeds=arrays["seeds"],
        density=arrays["density"],
        importance=arrays["importance"],
        points=config["points"],
    )
