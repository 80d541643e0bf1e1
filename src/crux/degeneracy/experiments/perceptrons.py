"""The ReLU perceptrons whose degeneracy is measured: one that is trained here on digits, and the MLP of a modular-addition network."""

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

HELD_OUT = 360
"""Digits, of 1797."""


class Samples(NamedTuple):
    """What goes in, and what should come out; float64."""

    inputs: Float[Tensor, "sample d_in"]
    beside: Float[Tensor, "sample d_out"]
    """What is added to the perceptron's outputs to give logits."""
    labels: Int[Tensor, "sample"]

    def loss(self, outputs: Float[Tensor, "sample d_out"]) -> float:
        """Cross-entropy, nats."""
        return float(F.cross_entropy(outputs + self.beside, self.labels))

    def right(self, outputs: Float[Tensor, "sample d_out"]) -> float:
        """Share of the samples whose largest logit is the label's."""
        return float(((outputs + self.beside).argmax(1) == self.labels).double().mean())


class Perceptron(NamedTuple):
    """Linear maps with a ReLU behind each but the last."""

    name: str
    network: Chain
    maps: tuple[str, ...]
    """Hook points behind the linear maps, in order."""
    train: Samples
    test: Samples


def perceptron(options: Degeneracy, *, path: str | None, run: ActiveRun) -> Perceptron:
    """Return the MLP of the modular-addition network in a folder, or else one that is trained here."""
    if path is not None:
        return of_addition(path)
    return on_digits(options.hidden, steps=options.steps, run=run)


def of_addition(path: str) -> Perceptron:
    """Return the MLP at "=" of a trained modular-addition network, on all pairs."""
    whole, pairs = load_addition_network(path)
    whole = whole.double()

    def samples(tokens: Tensor) -> Samples:
        mid = whole.clean(tokens, capture=[MID], final=False).activations[MID][:, -1]
        return Samples(mid, (mid @ whole.parts[3].W_U).detach(), Pairs.sums(tokens))

    maps = "blocks.0.mlp.hook_pre", "blocks.0.hook_mlp_out"
    return Perceptron(
        "modular addition", whole.mlp_chain().requires_grad_(False), maps, samples(pairs.train), samples(pairs.test)
    )


def on_digits(hidden: list[int], *, steps: int, run: ActiveRun) -> Perceptron:
    """Train on 8 × 8 pixels (0 to 1) of handwritten digits (scikit-learn's), by AdamW on all of them at once: seconds."""
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
        Samples(x, torch.zeros(len(x), 10).double(), y)
        for x, y in ((pixels[HELD_OUT:], labels[HELD_OUT:]), (pixels[:HELD_OUT], labels[:HELD_OUT]))
    )

    def weights() -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(train.inputs), train.labels).backward()
            optimizer.step()
        return network.state_dict()

    network.load_state_dict(compute_once(run.folder, "perceptron", weights))
    maps = *(f"pre{i}" for i in range(len(hidden))), "output"
    return Perceptron("digits", network.requires_grad_(False), maps, train, test)
