"""A chain of maps written in other coordinates: the same function, with a basis's coordinates at its hook points.

Into and out of a basis are affine maps, x → x A + b. They are absorbed in the weights of a neighbouring Linear or Identity, and stand as a
Linear of their own beside anything else.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis
from crux.degeneracy.networks.chain import Chain


def rewritten(chain: Chain, bases: Sequence[Basis]) -> Chain:
    """The chain with coordinates at the bases' hook points; behind the last of them, and at other hook points, all is as it was.

    The output is equal where nothing that matters was left out of a basis. Parameters are float64 copies.

    Raises:
        UserError: a basis at a hook point that the chain lacks, or two at one.
    """
    at: dict[str, Basis] = {}
    for basis in bases:
        if basis.hook not in chain.hooks:
            raise UserError(f"{basis.hook}: no such hook point; there are {', '.join(chain.hooks)}")
        if basis.hook in at:
            raise UserError(f"{basis.hook}: two bases at one hook point")
        at[basis.hook] = basis
    stages: dict[str, nn.Module] = {}
    before: Basis | None = None
    for name, stage in zip(chain.hooks, chain.stages.values(), strict=True):
        maps = [_double(stage)]
        if before is not None:
            maps.insert(0, _affine(before.C_pinv, before.mean))
        before = at.get(name)
        if before is not None:
            maps.append(_affine(before.C, -before.mean @ before.C))
        stages[name] = _fused(maps)
    return Chain(stages)


def _affine(weight: Tensor, bias: Tensor) -> nn.Linear:
    """x → x weight + bias."""
    n_in, n_out = weight.shape
    found = nn.Linear(n_in, n_out, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        found.weight.copy_(weight.T)
        found.bias.copy_(bias)
    return found


def _double(stage: nn.Module) -> nn.Module:
    """A copy in float64."""
    return copy.deepcopy(stage).double()


def _fused(maps: list[nn.Module]) -> nn.Module:
    """One after the other, neighbouring Linears as one."""
    left: list[nn.Module] = []
    for each in maps:
        if isinstance(each, nn.Identity):
            continue
        first = left[-1] if left else None
        if isinstance(each, nn.Linear) and isinstance(first, nn.Linear):
            bias = torch.zeros_like(first.weight[:, 0]) if first.bias is None else first.bias
            left[-1] = _affine((each.weight @ first.weight).T, each(bias))
        else:
            left.append(each)
    return left[0] if len(left) == 1 else nn.Sequential(*left) if left else nn.Identity()
