"""One instance of a trained toy model as the subject of SAEs: its hidden activations, and what its output makes of others."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from crux.toy.exact.best import instance, losses
from crux.toy.features import FeatureBatches, Purpose
from crux.toy.program import Program, Trained, load
from crux.toy.superposition import SuperpositionModel, Weights


class ToySubject:
    """A frozen toy model. Not an nn.Module: it never enters a checkpoint."""

    def __init__(self, program: Program, weights: Weights) -> None:
        """`program` and `weights` are of one instance: one stream, one setting."""
        assert program.importance.shape[:2] == (1, 1)
        self.program = program
        self.model = SuperpositionModel(program.kind, weights).requires_grad_(False)
        self.importance = program.importance[0, 0]

    @property
    def n_hidden(self) -> int:
        return self.program.n_hidden

    @property
    def directions(self) -> Float[Tensor, "n_features n_hidden"]:
        """What each feature adds to the hidden layer (before a ReLU there): the truth that SAEs should find."""
        return self.model.W[0, 0].T

    def hidden(self, x: Float[Tensor, "batch n_features"]) -> Float[Tensor, "batch n_hidden"]:
        """Return the activations at the hook point."""
        return self.model.hidden(x[None])[0, 0]

    def output(self, h: Float[Tensor, "batch n_hidden"]) -> Float[Tensor, "batch n_features"]:
        """Return the network's output with these activations in place of its own."""
        return self.model.output(h[None, None])[0, 0]

    def error(
        self, output: Float[Tensor, "batch n_features"], x: Float[Tensor, "batch n_features"]
    ) -> Float[Tensor, ""]:
        """Return the network's own loss: Σ_i I_i (y_i − y'_i)², mean over samples."""
        return ((output - self.model.target(x[None])[0]).square() @ self.importance).mean()

    def features(self, *, batch: int, n_batches: int, seed: int, purpose: Purpose) -> FeatureBatches:
        """Return fresh data of the kind that the network was trained on; a batch is [1, batch, n_features]."""
        program = self.program._replace(points=None, seeds=torch.tensor([seed]))
        return program.data(batch=batch, n_batches=n_batches, purpose=purpose)


def subject_of(trained: Trained, index: int | None) -> ToySubject:
    """Return the instance with a number (settings run fastest); None: the one with the lowest loss."""
    flat = losses(trained).flatten()
    chosen = int(flat.argmin()) if index is None else index
    stream, setting = divmod(chosen, trained.program.importance.shape[1])
    program, weights = trained.program, instance(trained.weights, stream, setting)
    one = program._replace(
        seeds=program.seeds[stream : stream + 1],
        density=program.density[stream : stream + 1],
        importance=program.importance[stream, setting][None, None],
    )
    W_out = weights.W_out[None, None] if weights.W_out is not None else None
    return ToySubject(one, Weights(weights.W[None, None], weights.b[None, None], W_out))


def load_toy(folder: Path, index: int | None) -> ToySubject:
    """Load the subject in a toy model's folder."""
    return subject_of(load(folder), index)
