"""SAEs for the sampler: their training loss and their reconstructions, for all checkpoints at once."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from crux.llc.behavioural import Outputs
from crux.llc.losses import Batch, ChainLoss, map_over_chains
from crux.sae.architectures.sae import SAE


class _TrainingLoss(nn.Module):
    """An SAE whose forward pass returns its training loss."""

    def __init__(self, sae: SAE, *, reconstruction: float, sparsity: float) -> None:
        super().__init__()
        self.sae, self.reconstruction, self.sparsity = sae, reconstruction, sparsity

    def forward(self, x: Float[Tensor, "sample d"]) -> Float[Tensor, "sample"]:
        codes = self.sae.encode(x)
        error = (self.sae.decode(codes) - x).square().mean(-1)
        auxiliary = self.sae.auxiliary(codes, x, weight=None)
        loss = self.reconstruction * error + self.sparsity * self.sae.penalty(codes, weight=None)
        return loss if auxiliary is None else loss + auxiliary


def sae_loss(sae: SAE, *, reconstruction: float, sparsity: float) -> ChainLoss:
    """Return reconstruction · MSE(x̂, x) + λ · penalty + the architecture's auxiliary terms for every chain, without AuxK.

    Activations are [sample, d]. The loss takes the SAE's parameters by name; its scales are buffers and do not move.
    """
    model = _TrainingLoss(_copy_for_chains(sae), reconstruction=reconstruction, sparsity=sparsity)

    def sae_forward(p: dict[str, Tensor], x: Batch) -> Tensor:
        return functional_call(model, {f"sae.{name}": value for name, value in p.items()}, (x,))

    return map_over_chains(sae_forward)


def sae_reconstructions(sae: SAE) -> Outputs:
    """Return the reconstructions x̂ of every chain."""
    model = _copy_for_chains(sae)

    def sae_forward(p: dict[str, Tensor], x: Batch) -> Tensor:
        return functional_call(model, p, (x,))

    return map_over_chains(sae_forward)


def _copy_for_chains(sae: SAE) -> SAE:
    """Return a copy in float64 whose products are dense, so that one call can compute all chains."""
    model = copy.deepcopy(sae).double().eval()
    model.sparse = False
    return model


def copy_weights(sae: SAE) -> dict[str, Float[Tensor, "..."]]:
    """Copy the current weights by name, in float64 on the CPU."""
    return {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in sae.named_parameters()}
