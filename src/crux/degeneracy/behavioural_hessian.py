"""The Hessian of the behavioural loss, in full: for networks of a few thousand parameters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.config.progress import track

CHUNK = 64
"""Samples whose Jacobians are there at once."""


def behavioural_hessian(network: nn.Module, inputs: Float[Tensor, "sample *shape"]) -> Float[Tensor, "n n"]:
    """H = 2 E[JᵀJ] of mean_x ‖f_θ(x) − f_θ*(x)‖² at θ*, J the Jacobian of the outputs by all parameters in their order.

    Exact, not an approximation: the residuals are 0 at θ*, so that nothing of the outputs' second derivatives is left.
    """
    params = {name: value.detach() for name, value in network.named_parameters()}

    def output(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(network, params, (x[None],))[0]

    jacobian = torch.vmap(torch.func.jacrev(output), in_dims=(None, 0))
    n = sum(value.numel() for value in params.values())
    H = inputs.new_zeros(n, n)
    for part in track(inputs.split(CHUNK), "Hessian of the behavioural loss"):
        found = jacobian(params, part)
        J = torch.cat([found[name].flatten(2) for name in params], 2).flatten(0, 1)
        H.addmm_(J.T, J, alpha=2 / len(inputs))
    return H
