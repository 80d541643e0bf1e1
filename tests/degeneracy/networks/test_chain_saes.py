"""Tests of the losses of SAEs on a chain against hand-computed ones, for several weights of the terms."""

import pytest
import torch
from torch import nn

from crux.config.schema import Optimizer, OptimizerName
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.networks.chain_saes import ChainLoss, ChainPasses, FrozenChain
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.site import Site
from crux.sae.losses.options import E2EDownstream
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity
from crux.toy.features import Cooccurrence, FeatureBatches, FeatureDistribution, Purpose


def chain() -> Chain:
    torch.manual_seed(0)
    stages = {
        "input": nn.Identity(),
        "hidden": nn.Linear(5, 4),
        "middle": nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
        "output": nn.Linear(3, 2),
    }
    return Chain(stages).requires_grad_(False)


def module(of: Chain, *, reconstruction: float, output: float, downstream: float) -> SAEModule:
    sae = ReluSAE(
        d_model=4, d_out=None, n_latents=6, init="tied", init_norm=1.0, subtract_b_dec=False,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    frozen = FrozenChain(of, ("middle",))
    loss = ChainLoss(E2EDownstream(reconstruction=reconstruction, kl=output, downstream=downstream), frozen=frozen)
    return SAEModule(
        [Site("hidden", "hidden", sae)], passes=ChainPasses(frozen, max_norm=None), loss=loss,
        sparsity=Sparsity(0.0, n_saes=1, steering=None),
        optimizer=Optimizer(1e-3, [0.9, 0.999], 1e-8, 0.0, 5, 0.1, name=OptimizerName.adam, clip=10.0),
        auxk=Auxk(coefficient=0.0, k=None, dead_after=0), max_steps=10, log_every=5, seed=0, runs=(),
    )  # fmt: skip


@pytest.mark.parametrize("shares", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 2.0), (0.3, 0.7, 0.1)])
def test_loss_and_gradient_by_hand(shares: tuple[float, float, float]) -> None:
    of = chain()
    trained = module(of, reconstruction=shares[0], output=shares[1], downstream=shares[2])
    sae = trained.sites[0].sae
    batch = FeatureBatches(
        FeatureDistribution(Cooccurrence.independent, 1, False), seeds=torch.tensor([0]), density=torch.full((1, 5), 0.5),
        batch=16, n_batches=1, points=None, purpose=Purpose.training,
    )[0]  # fmt: skip
    loss = trained.training_step(batch, 0)
    loss.backward()
    assert sae.W_enc.grad is not None
    found = sae.W_enc.grad.clone()
    sae.zero_grad()

    hidden, middle, output = (of.stages[name] for name in ("hidden", "middle", "output"))
    x = hidden(batch[0])
    x_hat = sae.decode(sae.encode(x))
    at, at_hat = middle(x), middle(x_hat)
    by_hand = (
        shares[0] * (x_hat - x).square().mean()
        + shares[1] * (output(at_hat) - output(at)).square().mean()
        + shares[2] * (at_hat - at).square().mean()
    )
    torch.testing.assert_close(loss.detach(), by_hand.detach())
    by_hand.backward()
    torch.testing.assert_close(found, sae.W_enc.grad)


def test_chain_is_not_in_checkpoints() -> None:
    names = module(chain(), reconstruction=1.0, output=1.0, downstream=1.0).state_dict()
    assert "saes.0.W_dec" in names
    assert not any("stages" in name for name in names)
