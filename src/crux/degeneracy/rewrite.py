"""Rewrite a chain of maps so that its hook points carry the coordinates of given bases; its function stays the same.

The maps into and out of a basis are affine, x → x A + b. They are merged with a neighbouring Linear or Identity. Next to
any other module they become an additional Linear.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.degeneracy.basis import Basis
from crux.degeneracy.networks.chain import Chain


def rewrite_in_bases(chain: Chain, bases: Sequence[Basis]) -> Chain:
    """Return a chain that carries coordinates at the hook points of the bases, and unchanged activations at all others.

    Its output is the same, unless a basis leaves out directions that affect it. Its parameters are float64 copies.

    Raises:
        UserError: if a hook point of a basis does not exist, or has two bases.
    """
    by_hook: dict[str, Basis] = {}
    for basis in bases:
        if basis.hook not in chain.hooks:
            raise UserError(f"{basis.hook}: no such hook point; there are {', '.join(chain.hooks)}")
        if basis.hook in by_hook:
            raise UserError(f"{basis.hook}: two bases at one hook point")
        by_hook[basis.hook] = basis
    stages: dict[str, nn.Module] = {}
    previous_basis: Basis | None = None
    for name, stage in zip(chain.hooks, chain.stages.values(), strict=True):
        basis = by_hook.get(name)
        maps: list[nn.Module] = [copy.deepcopy(stage).double()]
        if previous_basis is not None:  # back from its coordinates to activations
            maps.insert(0, _build_affine_map(previous_basis.C_pinv, previous_basis.mean))
        if basis is not None:  # from activations to its coordinates
            maps.append(_build_affine_map(basis.C, -basis.mean @ basis.C))
        stages[name] = _compose(maps)
        previous_basis = basis
    return Chain(stages)


def _build_affine_map(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return the map x → x @ weight + bias."""
    n_in, n_out = weight.shape
    linear = nn.Linear(n_in, n_out, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(bias)
    return linear


def _compose(maps: list[nn.Module]) -> nn.Module:
    """Return the composition of the maps, with consecutive Linears multiplied into one and Identities dropped."""
    composed: list[nn.Module] = []
    for module in maps:
        if isinstance(module, nn.Identity):
            continue
        previous = composed[-1] if composed else None
        if isinstance(module, nn.Linear) and isinstance(previous, nn.Linear):
            bias = torch.zeros_like(previous.weight[:, 0]) if previous.bias is None else previous.bias
            composed[-1] = _build_affine_map((module.weight @ previous.weight).T, module(bias))
        else:
            composed.append(module)
    return composed[0] if len(composed) == 1 else nn.Sequential(*composed) if composed else nn.Identity()
