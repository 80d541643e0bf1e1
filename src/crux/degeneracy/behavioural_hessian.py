"""The full Hessian of the behavioural loss, for networks of a few thousand parameters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crux.config.progress import track

SAMPLES_PER_CHUNK = 64
"""Number of samples whose Jacobians are in memory at the same time."""


def behavioural_hessian(network: nn.Module, inputs: Float[Tensor, "sample *shape"]) -> Float[Tensor, "n n"]:
    """Return the Hessian H = 2 E[JᵀJ] of the behavioural loss mean_x ‖f_θ(x) − f_θ*(x)‖² at θ* (Bushnaq et al. 2405.10927, §2.2).

    J is the Jacobian of the outputs with respect to all parameters, in the order of `named_parameters`. The formula is exact: the
    residuals are 0 at θ*, so the terms with second derivatives of the outputs vanish.
    """
    params = {name: value.detach() for name, value in network.named_parameters()}

    def output(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(network, params, (x[None],))[0]

    jacobian = torch.vmap(torch.func.jacrev(output), in_dims=(None, 0))
    n = sum(value.numel() for value in params.values())
    H = inputs.new_zeros(n, n)
    for chunk in track(inputs.split(SAMPLES_PER_CHUNK), "Hessian of the behavioural loss"):
        by_name = jacobian(params, chunk)
        J = torch.cat([by_name[name].flatten(2) for name in params], 2).flatten(0, 1)
        H.addmm_(J.T, J, alpha=2 / len(inputs))
    return H
