"""The ReLU perceptrons whose degeneracy is measured: one trained on digits, and the MLP of a modular-addition network."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from torch import Tensor, nn

from crux.degeneracy.experiments.trained_addition import load_addition_network
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.networks.modular_addition import MID, Pairs
from crux.degeneracy.options import Degeneracy
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun

N_HELD_OUT = 360
"""Number of the 1797 digits that are held out."""


class LabelledSamples(NamedTuple):
    """Inputs and labels, float64."""

    inputs: Float[Tensor, "sample d_in"]
    offset: Float[Tensor, "sample d_out"]
    """Added to the perceptron's outputs to give the logits: the part of the logits that bypasses the MLP of a transformer, or 0."""
    labels: Int[Tensor, "sample"]

    def loss(self, outputs: Float[Tensor, "sample d_out"]) -> float:
        """Return the mean cross-entropy in nats."""
        return float(F.cross_entropy(outputs + self.offset, self.labels))

    def accuracy(self, outputs: Float[Tensor, "sample d_out"]) -> float:
        """Return the share of the samples whose largest logit is that of the label."""
        return float(((outputs + self.offset).argmax(1) == self.labels).double().mean())


class Perceptron(NamedTuple):
    """A network of linear maps with a ReLU after each except the last, and its data."""

    name: str
    network: Chain
    maps: tuple[str, ...]
    """Hook points of the linear maps' outputs, in order."""
    train: LabelledSamples
    test: LabelledSamples


def load_or_train_perceptron(options: Degeneracy, *, path: str | None, run: ActiveRun) -> Perceptron:
    """Return the MLP of the modular-addition network in a folder, or train a perceptron on digits if no folder is given."""
    if path is not None:
        return load_addition_perceptron(path)
    return train_digits_perceptron(options.hidden, steps=options.steps, run=run)


def load_addition_perceptron(path: str) -> Perceptron:
    """Return the MLP of a trained modular-addition network at "=", with all pairs as data."""
    network, pairs = load_addition_network(path)
    network = network.double()

    def collect_samples(tokens: Tensor) -> LabelledSamples:
        mid = network.clean(tokens, capture=[MID], final=False).activations[MID][:, -1]
        return LabelledSamples(mid, (mid @ network.parts[3].W_U).detach(), Pairs.sums(tokens))

    maps = "blocks.0.mlp.hook_pre", "blocks.0.hook_mlp_out"
    return Perceptron(
        "modular addition",
        network.mlp_chain().requires_grad_(False),
        maps,
        collect_samples(pairs.train),
        collect_samples(pairs.test),
    )


def train_digits_perceptron(hidden: list[int], *, steps: int, run: ActiveRun) -> Perceptron:
    """Train a perceptron on scikit-learn's handwritten digits (8 × 8 pixels, 0 to 1) by full-batch AdamW, which takes seconds."""
    pixels, labels = (torch.from_numpy(np.asarray(array)) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(run.seed))
    pixels, labels = pixels[order].double() / 16, labels[order]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        stages: dict[str, nn.Module] = {"input": nn.Identity()}
        for i, (d_in, d_out) in enumerate(itertools.pairwise([pixels.shape[1], *hidden])):
            stages |= {f"pre{i}": nn.Linear(d_in, d_out), f"post{i}": nn.ReLU()}
        network = Chain({**stages, "output": nn.Linear(hidden[-1], 10)}).double()
    train, test = (
        LabelledSamples(x, torch.zeros(len(x), 10).double(), y)
        for x, y in ((pixels[N_HELD_OUT:], labels[N_HELD_OUT:]), (pixels[:N_HELD_OUT], labels[:N_HELD_OUT]))
    )

    def train_network() -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(train.inputs), train.labels).backward()
            optimizer.step()
        return network.state_dict()

    network.load_state_dict(compute_once(run.folder, "perceptron", train_network))
    maps = *(f"pre{i}" for i in range(len(hidden))), "output"
    return Perceptron("digits", network.requires_grad_(False), maps, train, test)
