"""The subject of SAEs on a toy model: one of its trained instances."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.best import instance_losses, select_instance
from crux.toy.features import FeatureBatches, Purpose
from crux.toy.program import Program, TrainedProgram, load_program
from crux.toy.superposition import SuperpositionModel, Weights


class ToySubject:
    """A frozen toy model with one instance. It is not an nn.Module, so that it never becomes part of a checkpoint."""

    def __init__(self, program: Program, weights: Weights) -> None:
        """Take a program and weights with a single instance: one stream, one setting."""
        assert program.importance.shape[:2] == (1, 1)
        self.program = program
        self.model = SuperpositionModel(program.kind, weights).requires_grad_(False)
        self.importance = program.importance[0, 0]

    @property
    def n_hidden(self) -> int:
        return self.program.n_hidden

    @property
    def directions(self) -> Float[Tensor, "n_features n_hidden"]:
        """The vector that each feature adds to the hidden layer (before a ReLU there): the true directions, which SAEs should find."""
        return self.model.W[0, 0].T

    def hidden(self, x: Float[Tensor, "batch n_features"]) -> Float[Tensor, "batch n_hidden"]:
        """Return the activations at the hook point."""
        return self.model.hidden(x[None])[0, 0]

    def output(self, h: Float[Tensor, "batch n_hidden"]) -> Float[Tensor, "batch n_features"]:
        """Return the network's output if its hidden activations are replaced by h."""
        return self.model.output(h[None, None])[0, 0]

    def loss(
        self, output: Float[Tensor, "batch n_features"], x: Float[Tensor, "batch n_features"]
    ) -> Float[Tensor, ""]:
        """Return the network's training loss: Σ_i I_i (y_i − y'_i)², mean over samples."""
        return ((output - self.model.target(x[None])[0]).square() @ self.importance).mean()

    def features(self, *, batch: int, n_batches: int, seed: int, purpose: Purpose) -> FeatureBatches:
        """Return fresh data from the distribution that the network was trained on; a batch is [1, batch, n_features]."""
        program = self.program._replace(points=None, seeds=torch.tensor([seed]))
        return program.data(batch=batch, n_batches=n_batches, purpose=purpose)


def select_subject(trained: TrainedProgram, index: int | None) -> ToySubject:
    """Return the instance with this number as a subject; if the number is None, the instance with the lowest loss.

    Instances are counted stream by stream: instance number = stream · n_settings + setting.
    """
    chosen = int(instance_losses(trained).flatten().argmin()) if index is None else index
    n_settings = trained.program.importance.shape[1]
    stream, setting = divmod(chosen, n_settings)
    program, weights = trained.program, select_instance(trained.weights, stream, setting)
    one = program._replace(
        seeds=program.seeds[stream : stream + 1],
        density=program.density[stream : stream + 1],
        importance=program.importance[stream, setting][None, None],
    )
    W_out = weights.W_out[None, None] if weights.W_out is not None else None
    return ToySubject(one, Weights(weights.W[None, None], weights.b[None, None], W_out))


def load_toy_subject(folder: Path, index: int | None) -> ToySubject:
    """Load a subject from a toy model's folder."""
    return select_subject(load_program(folder), index)
