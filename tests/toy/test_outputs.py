"""SAEs on toy models: the end-to-end loss by hand, and a planted case in which it differs from the local loss."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from crux.config.schema import Accelerator, Optimizer, OptimizerName, Trainer
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.losses.local import LocalLoss
from crux.sae.losses.loss import Loss
from crux.sae.losses.options import E2E, Local
from crux.sae.training.passes import ActivationPasses
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity
from crux.toy.evaluate import evaluate_on_toy, explained_variance
from crux.toy.features import Cooccurrence, FeatureDistribution, Purpose
from crux.toy.folder import HOOK
from crux.toy.program import Program
from crux.toy.sae_outputs import HiddenActivations, OutputLoss
from crux.toy.subject import ToySubject
from crux.toy.superposition import Kind, Weights
from crux.training.data import Feed
from crux.training.devices import CPU
from crux.training.fit import fit

USED, UNUSED = 6, 4
SCALE = 5.0
"""How much longer the directions are that the output does not use."""


def build_planted_subject() -> ToySubject:
    """Return a subject with ten features in orthogonal directions. The output reads six; the other four are five times as long."""
    n = USED + UNUSED
    rotation = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0))).Q
    lengths = torch.tensor([1.0] * USED + [SCALE] * UNUSED)
    read = rotation.T.clone()
    read[USED:] = 0
    weights = Weights((rotation * lengths)[None, None], torch.zeros(1, 1, n), read[None, None])
    program = Program(
        name="planted",
        kind=Kind.relu_output,
        n_hidden=n,
        distribution=FeatureDistribution(Cooccurrence.independent, 1, False),
        seeds=torch.tensor([0]),
        density=torch.full((1, n), 0.2),
        importance=torch.tensor([1.0] * USED + [0.0] * UNUSED)[None, None],
        points=None,
    )
    return ToySubject(program, weights)


def build_module(sae: SAE, loss: Loss[Any], *, steps: int, sparsity: float) -> SAEModule:
    return SAEModule(
        [Site(HOOK, HOOK, sae)],
        passes=ActivationPasses(max_norm=None),
        loss=loss,
        sparsity=Sparsity(sparsity, n_saes=1, steering=None),
        optimizer=Optimizer(3e-3, [0.9, 0.999], 1e-8, 0.0, 50, 0.1, name=OptimizerName.adam, clip=10.0),
        auxk=Auxk(coefficient=0.0, k=None, dead_after=0),
        max_steps=steps,
        log_every=50,
        seed=0,
        runs=(),
    )


def build_fresh_sae(seed: int) -> SAE:
    return ReluSAE(
        d_model=USED + UNUSED, d_out=None, n_latents=6, init="tied", init_norm=1.0, subtract_b_dec=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def train_sae(subject: ToySubject, sae: SAE, *, end_to_end: bool, sparsity: float, folder: Path) -> SAE:
    steps = 1500
    features = subject.features(batch=512, n_batches=steps, seed=1, purpose=Purpose.training)
    local, output = Local(reconstruction=1.0), E2E(kl=1.0, reconstruction=0.0)
    loss = OutputLoss(output, subject=subject) if end_to_end else LocalLoss(local)
    module = build_module(sae, loss, steps=steps, sparsity=sparsity)
    feed = Feed(HiddenActivations(features, subject=subject, hook=HOOK), accumulate=1)
    fit(
        module, feed, trainer=Trainer(False, Accelerator.cpu, steps, 50, 10**6), hardware=CPU, items_per_step=512,
        unit="samples", checkpoints=folder, resume=None, sinks=[], evaluations=None, bar_labels={}, callbacks=[],
        on_abandon=None,
    )  # fmt: skip
    return sae


class Contents(NamedTuple):
    long: int
    """Number of long directions, which the output does not read, in the dictionary."""
    read: float
    """Explained variance of the part of the hidden activation that the output reads."""
    unread: float
    """Explained variance of the rest."""
    loss_increase: float


@torch.no_grad()
def measure_contents(subject: ToySubject, sae: SAE) -> Contents:
    evaluation = evaluate_on_toy(subject, sae, n_samples=20_000)
    W_out = subject.model.W_out
    assert W_out is not None
    basis = torch.linalg.svd(W_out[0, 0])[2]
    h = subject.hidden(subject.features(batch=20_000, n_batches=1, seed=0, purpose=Purpose.held_out)[0][0])
    parts = (sae.decode(sae.encode(h)) @ basis.T, h @ basis.T)
    read, unread = (explained_variance(*(part[:, s] for part in parts)) for s in (slice(USED), slice(USED, None)))
    n_long = int((evaluation.recovery.cosine[USED:] > 0.9).sum())
    return Contents(n_long, read, unread, evaluation.metrics["loss_increase"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_local_keeps_long_directions_and_end_to_end_those_that_are_used(seed: int, tmp_path: Path) -> None:
    """With six latents for ten directions, local training learns the four long ones, which the output does not read; end-to-end drops them.

    The end-to-end dictionary need not equal the directions that are read, because nothing removes the unread part of a decoder direction.
    The test therefore measures the explained variance of both parts.
    """
    subject = build_planted_subject()
    local = measure_contents(
        subject, train_sae(subject, build_fresh_sae(seed), end_to_end=False, sparsity=0.5, folder=tmp_path / "local")
    )
    e2e = measure_contents(
        subject, train_sae(subject, build_fresh_sae(seed), end_to_end=True, sparsity=0.02, folder=tmp_path / "e2e")
    )
    assert (local.long, e2e.long) == (UNUSED, 0)
    assert local.unread > 0.9 > 0.3 > e2e.unread
    assert e2e.read > local.read + 0.2
    assert e2e.loss_increase < 0.25 * local.loss_increase


def test_loss_and_gradient_equal_hand_computed_values(tmp_path: Path) -> None:
    subject, sae = build_planted_subject(), build_fresh_sae(0)
    module = build_module(sae, OutputLoss(E2E(kl=2.0, reconstruction=0.3), subject=subject), steps=10, sparsity=0.0)
    batches = subject.features(batch=16, n_batches=1, seed=3, purpose=Purpose.training)
    features, batch = batches[0], HiddenActivations(batches, subject=subject, hook=HOOK)[0]
    module.training_step(batch, 0).backward()
    assert sae.W_enc.grad is not None
    by_module = sae.W_enc.grad.clone()
    sae.zero_grad()

    W, b, W_out = subject.model.W[0, 0], subject.model.b[0, 0], subject.model.W_out
    assert W_out is not None
    h = features[0] @ W.T
    h_hat = sae.decode(sae.encode(h))
    clean, spliced = ((v @ W_out[0, 0].T + b).clamp_min(0) for v in (h, h_hat))
    by_hand = 2.0 * (spliced - clean).square().mean() + 0.3 * (h_hat - h).square().mean()
    torch.testing.assert_close(module.training_step(batch, 0).detach(), by_hand.detach())
    by_hand.backward()
    torch.testing.assert_close(by_module, sae.W_enc.grad)
    assert all(parameter.grad is None for parameter in subject.model.parameters())
