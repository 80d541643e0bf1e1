"""A network that is a chain of maps with a hook point behind each: perceptrons, small transformers at their residual stream."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.subjects.hooks import check_onward
from crux.subjects.subject import Clean, Replay


class Chain(nn.Module):
    """Maps one after the other. The result of each stands at a hook point, by the name of its stage.

    Its parameters stay trainable; a clean pass builds no graph. `forward` is the whole network, for training and `torch.func`.

    Args:
        stages: by the hook point behind each. Dots of a name become underscores in the parameters' names.
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "_") for name in stages}
        assert len(set(self._names.values())) == len(stages)
        self.stages = nn.ModuleDict({self._names[name]: stage for name, stage in stages.items()})

    @property
    def hooks(self) -> tuple[str, ...]:
        """The hook points, in order; the last is the output."""
        return tuple(self._names)

    @property
    def output(self) -> str:
        """The last hook point."""
        return self.hooks[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages.values():
            inputs = stage(inputs)
        return inputs

    @torch.no_grad()
    def clean(self, inputs: Tensor, *, capture: Collection[str], final: bool) -> Clean:
        """See `Network.clean`; `final` of what comes back is the output."""
        if not final and not capture:
            raise UserError("clean(final=False): nothing to do, capture is empty")
        if unknown := sorted(set(capture) - set(self.hooks)):
            raise UserError(f"{unknown[0]}: no such hook point; there are {', '.join(self.hooks)}")
        kept: dict[str, Tensor] = {}
        value, left = inputs, set(capture)
        for name in self.hooks:
            value = self.stages[self._names[name]](value)
            if name in left:
                kept[name] = value
                left.remove(name)
            if not left and not final:
                break
        return Clean(kept, value if final else None, Replay([], {}))

    def onward(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        """See `Network.onward`; all that lies ahead follows from the value, `clean` is not read."""
        check_onward(self.hooks, start, ends)
        found = {start: value} if start in ends else {}
        for name in self.hooks[self.hooks.index(start) + 1 :]:
            if len(found) == len(set(ends)):
                break
            value = self.stages[self._names[name]](value)
            if name in ends:
                found[name] = value
        return found
