"""Conversion between named parameters, which a loss takes, and rows of a matrix of coordinates, which are sampled.

A parameter that a network uses twice is one coordinate. Two names for the same memory are rejected: each would get independent
noise, which doubles the temperature and the learning coefficient (as in devinterp's toy-model example).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crux.config.errors import UserError


def stack_parameters(models: Sequence[nn.Module]) -> dict[str, Float[Tensor, "case ..."]]:
    """Stack the parameters of networks of equal shape, such as checkpoints, one row per network; a shared parameter appears once.

    Raises:
        UserError: if two parameters of a network share memory.
    """
    parameters = [dict(model.named_parameters()) for model in models]  # lists a shared Parameter once
    for named in parameters:
        reject_aliases(named)
    return {name: torch.stack([p[name].detach() for p in parameters]) for name in parameters[0]}


def reject_aliases(params: Mapping[str, Tensor]) -> None:
    """Raise UserError if two parameters share memory."""
    occupied: list[tuple[int, int, str]] = []  # first address, one past the last address, and name of each parameter
    for name, value in params.items():
        if not value.numel():
            continue
        begin = value.data_ptr()
        end = begin + value.element_size() * (
            1 + sum((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
        )
        for other_begin, other_end, other in occupied:
            if begin < other_end and other_begin < end:
                raise UserError(
                    f"{name} and {other} share their storage, so that one number would be sampled as two; "
                    "use one parameter twice, or copy one of them"
                )
        occupied.append((begin, end, name))


class Coordinates:
    """The entries of the parameters that move, in a fixed order.

    Args:
        params: parameters with the case as first axis.
        free: masks of the entries that move; all entries of a parameter without a mask move. None: all entries move.
    """

    def __init__(
        self, params: Mapping[str, Float[Tensor, "case ..."]], *, free: Mapping[str, Bool[Tensor, "..."]] | None
    ) -> None:
        reject_aliases({name: value[0] for name, value in params.items()})
        free = free or {}
        if unknown := sorted(free.keys() - params.keys()):
            raise UserError(f"free: there is no parameter {unknown[0]}; there are {', '.join(params)}")
        self.shapes = {name: value.shape[1:] for name, value in params.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        for name, mask in free.items():
            if mask.shape != self.shapes[name]:
                raise UserError(
                    f"free: {name} has shape {tuple(self.shapes[name])}, its mask {tuple(mask.shape)}; must be the same"
                )
        self.all_values = torch.cat([value.detach().flatten(1) for value in params.values()], 1)
        masks = [
            free[name].flatten().cpu() if name in free else torch.ones(size, dtype=torch.bool)
            for name, size in zip(params, self.sizes, strict=True)
        ]
        self.index = torch.cat(masks).nonzero().squeeze(1).to(self.all_values.device)
        if not len(self.index):
            raise UserError("free: no parameter is free to move")

    @property
    def n(self) -> int:
        """Number of entries that move."""
        return len(self.index)

    def start(self, repeat: int) -> Float[Tensor, "row n"]:
        """Return w* with each case repeated `repeat` times."""
        return self.all_values[:, self.index].repeat_interleave(repeat, 0)

    def to_parameters(self, w: Float[Tensor, "row n"]) -> dict[str, Float[Tensor, "row ..."]]:
        """Return the named parameters for a loss; entries that do not move have the values of the row's case."""
        if self.n < self.all_values.shape[1]:
            w = self.all_values.repeat_interleave(len(w) // len(self.all_values), 0).index_copy(1, self.index, w)
        parts = w.split(self.sizes, 1)
        return {name: part.view(-1, *shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}
