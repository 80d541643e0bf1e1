"""Tests of the losses of SAEs on a chain of maps against hand-computed ones, for several weights of the terms."""

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


def build_chain() -> Chain:
    torch.manual_seed(0)
    stages = {
        "input": nn.Identity(),
        "hidden": nn.Linear(5, 4),
        "middle": nn.Sequential(nn.Linear(4, 3), nn.Tanh()),
        "output": nn.Linear(3, 2),
    }
    return Chain(stages).requires_grad_(False)


def build_module(chain: Chain, *, reconstruction: float, output: float, downstream: float) -> SAEModule:
    """Return the training module of an SAE at `hidden`, with these weights of the loss's terms and no sparsity penalty."""
    sae = ReluSAE(
        d_model=4, d_out=None, n_latents=6, init="tied", init_norm=1.0, subtract_b_dec=False,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    frozen = FrozenChain(chain, ("middle",))
    loss = ChainLoss(E2EDownstream(reconstruction=reconstruction, kl=output, downstream=downstream), frozen=frozen)
    return SAEModule(
        [Site("hidden", "hidden", sae)], passes=ChainPasses(frozen, max_norm=None), loss=loss,
        sparsity=Sparsity(0.0, n_saes=1, steering=None),
        optimizer=Optimizer(1e-3, [0.9, 0.999], 1e-8, 0.0, 5, 0.1, name=OptimizerName.adam, clip=10.0),
        auxk=Auxk(coefficient=0.0, k=None, dead_after=0), max_steps=10, log_every=5, seed=0, runs=(),
    )  # fmt: skip


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.5, 2.0), (0.3, 0.7, 0.1)])
def test_loss_and_gradient_equal_those_by_hand(weights: tuple[float, float, float]) -> None:
    """The weights are those of the reconstruction, of the output and of the activation at `middle`."""
    chain = build_chain()
    reconstruction, output_weight, downstream = weights
    module = build_module(chain, reconstruction=reconstruction, output=output_weight, downstream=downstream)
    sae = module.sites[0].sae
    batch = FeatureBatches(
        FeatureDistribution(Cooccurrence.independent, 1, False), seeds=torch.tensor([0]), density=torch.full((1, 5), 0.5),
        batch=16, n_batches=1, points=None, purpose=Purpose.training,
    )[0]  # fmt: skip
    loss = module.training_step(batch, 0)
    loss.backward()
    assert sae.W_enc.grad is not None
    gradient = sae.W_enc.grad.clone()
    sae.zero_grad()

    hidden, middle, output = (chain.stages[name] for name in ("hidden", "middle", "output"))
    x = hidden(batch[0])
    x_hat = sae.decode(sae.encode(x))
    m, m_hat = middle(x), middle(x_hat)
    by_hand = (
        reconstruction * (x_hat - x).square().mean()
        + output_weight * (output(m_hat) - output(m)).square().mean()
        + downstream * (m_hat - m).square().mean()
    )
    torch.testing.assert_close(loss.detach(), by_hand.detach())
    by_hand.backward()
    torch.testing.assert_close(gradient, sae.W_enc.grad)


def test_chain_is_not_in_checkpoints() -> None:
    names = build_module(build_chain(), reconstruction=1.0, output=1.0, downstream=1.0).state_dict()
    assert "saes.0.W_dec" in names
    assert not any("stages" in name for name in names)
