"""The free parameters of some networks as rows of one matrix, and back: what is sampled is a vector, what a loss takes is names.

A parameter that is used twice is one coordinate. Two names for one storage are refused: each would get its own noise, which
doubles the temperature and the learning coefficient (devinterp's toy-model example).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crux.config.errors import UserError


def stacked(models: Sequence[nn.Module]) -> dict[str, Float[Tensor, "case ..."]]:
    """Return the parameters of equal networks, such as checkpoints of one, one row per network; a shared parameter comes once.

    Raises:
        UserError: if two parameters of a network lie in one storage.
    """
    found = [dict(model.named_parameters()) for model in models]  # drops the second name of the same Parameter
    for each in found:
        refuse_aliases(each)
    return {name: torch.stack([each[name].detach() for each in found]) for name in found[0]}


def refuse_aliases(params: Mapping[str, Tensor]) -> None:
    """Raise a UserError if two names lie in the same memory."""
    known: list[tuple[int, int, str]] = []
    for name, value in params.items():
        if not value.numel():
            continue
        begin = value.data_ptr()
        end = begin + value.element_size() * (
            1 + sum((n - 1) * by for n, by in zip(value.shape, value.stride(), strict=True))
        )
        for other_begin, other_end, other in known:
            if begin < other_end and other_begin < end:
                raise UserError(
                    f"{name} and {other} share their storage, so one number would be sampled as two; "
                    "use one parameter twice, or copy one of them"
                )
        known.append((begin, end, name))


class Coordinates:
    """Which numbers of the parameters move, in one order.

    Args:
        params: of each case, as first axis.
        free: of a parameter's numbers those that move; a parameter that is not named moves whole, and all of them if None.
    """

    def __init__(
        self, params: Mapping[str, Float[Tensor, "case ..."]], *, free: Mapping[str, Bool[Tensor, "..."]] | None
    ) -> None:
        refuse_aliases({name: value[0] for name, value in params.items()})
        free = free or {}
        if unknown := sorted(free.keys() - params.keys()):
            raise UserError(f"free: there is no parameter {unknown[0]}; there are {', '.join(params)}")
        self.shapes = {name: value.shape[1:] for name, value in params.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        for name, moves in free.items():
            if moves.shape != self.shapes[name]:
                raise UserError(
                    f"free: {name} has shape {tuple(self.shapes[name])}, its mask {tuple(moves.shape)}; must be the same"
                )
        self.whole = torch.cat([value.detach().flatten(1) for value in params.values()], 1)
        moves = [
            free[name].flatten().cpu() if name in free else torch.ones(size, dtype=torch.bool)
            for name, size in zip(params, self.sizes, strict=True)
        ]
        self.index = torch.cat(moves).nonzero().squeeze(1).to(self.whole.device)
        if not len(self.index):
            raise UserError("free: no parameter is free to move")

    @property
    def n(self) -> int:
        """How many numbers move."""
        return len(self.index)

    def start(self, repeat: int) -> Float[Tensor, "row n"]:
        """w*: each case `repeat` times in a row."""
        return self.whole[:, self.index].repeat_interleave(repeat, 0)

    def named(self, w: Float[Tensor, "row n"]) -> dict[str, Float[Tensor, "row ..."]]:
        """The parameters that a loss takes; what does not move is as it was in the row's case."""
        if self.n < self.whole.shape[1]:
            w = self.whole.repeat_interleave(len(w) // len(self.whole), 0).index_copy(1, self.index, w)
        parts = w.split(self.sizes, 1)
        return {name: part.view(-1, *shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}
