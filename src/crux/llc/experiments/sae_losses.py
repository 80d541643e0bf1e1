"""SAEs under the sampler: the loss that they train for and their reconstructions, of all checkpoints at once."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from crux.llc.behavioural import Outputs
from crux.llc.losses import Batch, Loss, over_chains
from crux.sae.architectures.sae import SAE


class _Trained(nn.Module):
    """An SAE whose forward pass is its loss."""

    def __init__(self, sae: SAE, *, reconstruction: float, sparsity: float) -> None:
        super().__init__()
        self.sae, self.reconstruction, self.sparsity = sae, reconstruction, sparsity

    def forward(self, x: Float[Tensor, "sample d"]) -> Float[Tensor, "sample"]:
        codes = self.sae.encode(x)
        error = (self.sae.decode(codes) - x).square().mean(-1)
        own = self.sae.auxiliary(codes, x, weight=None)
        loss = self.reconstruction * error + self.sparsity * self.sae.penalty(codes, weight=None)
        return loss if own is None else loss + own


def local_loss_of(sae: SAE, *, reconstruction: float, sparsity: float) -> Loss:
    """Return reconstruction · MSE(x̂, x) + λ · penalty + the architecture's own terms of every chain, on activations [sample, d]; no AuxK.

    The parameters are the SAE's own by name; so are its scales, which stay as they are.
    """
    model = _Trained(copy.deepcopy(sae).double().eval(), reconstruction=reconstruction, sparsity=sparsity)

    def one(p: dict[str, Tensor], x: Batch) -> Tensor:
        return functional_call(model, {f"sae.{name}": value for name, value in p.items()}, (x,))

    return over_chains(one)


def reconstructions_of(sae: SAE) -> Outputs:
    """Return x̂ of every chain."""
    model = copy.deepcopy(sae).double().eval()

    def one(p: dict[str, Tensor], x: Batch) -> Tensor:
        return functional_call(model, p, (x,))

    return over_chains(one)


def copy_weights(sae: SAE) -> dict[str, Float[Tensor, "..."]]:
    """Return a copy of the weights as they are now by name, float64, on the CPU."""
    return {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in sae.named_parameters()}
