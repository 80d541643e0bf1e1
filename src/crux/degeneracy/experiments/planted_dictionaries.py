"""SAEs with the losses local, e2e and e2e_ds on a network with directions that it does not read.

The hidden activation has ten features, each along a separate direction. Later layers read six of them. The directions of the other four are
five times as long, so that an SAE with six latents that minimises the reconstruction error uses latents for them.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from crux.config.schema import Accelerator, Optimizer, OptimizerName, Trainer
from crux.degeneracy.basis import Basis
from crux.degeneracy.dictionary import DictionaryOutside, measure_outside, strongest_subspace
from crux.degeneracy.interaction_basis import interaction_bases
from crux.degeneracy.networks.chain import Chain
from crux.degeneracy.networks.chain_saes import ChainLoss, ChainPasses, FrozenChain
from crux.sae.architectures.options import Auxk
from crux.sae.architectures.relu import ReluSAE
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.losses.options import E2EDownstream
from crux.sae.training.sae_module import SAEModule
from crux.sae.training.sparsity import Sparsity
from crux.toy.features import Cooccurrence, FeatureBatches, FeatureDistribution, Purpose
from crux.training.data import Feed
from crux.training.devices import CPU
from crux.training.fit import fit

N_READ, N_UNREAD = 6, 4
"""Numbers of features that later layers read, and that they do not read."""
UNREAD_LENGTH = 5.0
"""Length of the unread features' directions, relative to the read ones."""
DENSITY = 0.2
"""Probability that a feature is active."""
STEPS, BATCH, LOG_EVERY = 1500, 512, 50
N_LATENTS = 6
N_HELD_OUT = 8192
"""Samples on which the trained SAEs are evaluated."""
HIDDEN, MIDDLE, OUTPUT = "hidden", "middle", "output"
"""Hook points. The SAEs are trained at `hidden`; `middle` is the hook point of the downstream loss."""
OPTIMIZER = Optimizer(
    3e-3, [0.9, 0.999], 1e-8, 0.0, warmup_steps=50, min_lr_factor=0.1, name=OptimizerName.adam, clip=10.0
)
NO_AUXK = Auxk(coefficient=0.0, k=None, dead_after=0)

LOSSES = {
    "local": E2EDownstream(reconstruction=1.0, kl=0.0, downstream=0.0, default_sparsity=0.5),
    "e2e": E2EDownstream(reconstruction=0.0, kl=1.0, downstream=0.0, default_sparsity=0.02),
    "e2e_ds": E2EDownstream(reconstruction=0.0, kl=0.5, downstream=0.5, default_sparsity=0.02),
}
"""Options of each loss. The sparsity λ is smaller for the losses of the output, because their errors are smaller."""


def build_planted_chain(seed: int) -> Chain:
    """Build the network: features → hidden → ReLU of the six read directions → a rotation of these, with different scales."""
    rng = torch.Generator().manual_seed(seed)
    n = N_READ + N_UNREAD
    rotation = torch.linalg.qr(torch.randn(n, n, generator=rng)).Q
    hidden, read, mix = (
        nn.Linear(n, n, bias=False),
        nn.Linear(n, N_READ, bias=False),
        nn.Linear(N_READ, N_READ, bias=False),
    )
    with torch.no_grad():
        hidden.weight.copy_(rotation * torch.tensor([1.0] * N_READ + [UNREAD_LENGTH] * N_UNREAD))
        read.weight.copy_(rotation.T[:N_READ])
        mix.weight.copy_(
            torch.linalg.qr(torch.randn(N_READ, N_READ, generator=rng)).Q * torch.linspace(1.2, 0.7, N_READ)
        )
    stages = {"input": nn.Identity(), HIDDEN: hidden, MIDDLE: nn.Sequential(read, nn.ReLU()), OUTPUT: mix}
    return Chain(stages).requires_grad_(False)


def draw_feature_batches(*, seed: int, batch: int, n_batches: int, purpose: Purpose) -> FeatureBatches:
    """Return batches [1, batch, n] of independent features."""
    return FeatureBatches(
        FeatureDistribution(Cooccurrence.independent, 1, False), seeds=torch.tensor([seed]),
        density=torch.full((1, N_READ + N_UNREAD), DENSITY), batch=batch, n_batches=n_batches, points=None, purpose=purpose,
    )  # fmt: skip


def create_sae(seed: int) -> SAE:
    """Return an untrained SAE for the hidden activation."""
    return ReluSAE(
        d_model=N_READ + N_UNREAD, d_out=None, n_latents=N_LATENTS, init="tied", init_norm=1.0, subtract_b_dec=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def train_planted_sae(sae: SAE, chain: Chain, loss: str, *, seed: int, progress: bool) -> None:
    """Train an SAE at the hidden activation."""
    frozen, options = FrozenChain(chain, (MIDDLE,)), LOSSES[loss]
    module = SAEModule(
        [Site(HIDDEN, HIDDEN, sae)], passes=ChainPasses(frozen, max_norm=None), loss=ChainLoss(options, frozen=frozen),
        sparsity=Sparsity(options.default_sparsity, n_saes=1, steering=None), optimizer=OPTIMIZER, auxk=NO_AUXK,
        max_steps=STEPS, log_every=LOG_EVERY, seed=seed, runs=(),
    )  # fmt: skip
    source = draw_feature_batches(seed=seed, batch=BATCH, n_batches=STEPS, purpose=Purpose.training)
    trainer = Trainer(progress, Accelerator.cpu, max_steps=STEPS, log_every=LOG_EVERY, checkpoint_every=STEPS)
    with tempfile.TemporaryDirectory() as folder:  # seconds of training: nothing to resume
        fit(
            module, Feed(source, accumulate=1), trainer=trainer, hardware=CPU, items_per_step=BATCH, unit="samples",
            checkpoints=Path(folder), resume=None, sinks=[], evaluations=None, bar_labels={"train/l0": "L0"}, callbacks=[],
            on_abandon=None,
        )  # fmt: skip


def evaluate_dictionaries(
    chain: Chain, saes: dict[str, SAE], *, seed: int, left_out: float
) -> tuple[Basis, dict[str, DictionaryOutside]]:
    """Return the global interaction basis at the hidden activation, and the parts of each SAE outside its subspace."""
    (x,) = draw_feature_batches(seed=seed, batch=N_HELD_OUT, n_batches=1, purpose=Purpose.held_out)[0]
    h = chain.clean(x, capture=[HIDDEN], final=False).activations[HIDDEN]
    basis = interaction_bases(
        chain, [x], hooks=[HIDDEN, OUTPUT], ahead=None, last=None, probes=None, threshold=1e-9, seed=seed
    )[0]
    Q = strongest_subspace(basis, left_out=left_out)
    return basis, {name: measure_outside(sae, h, h, Q) for name, sae in saes.items()}
