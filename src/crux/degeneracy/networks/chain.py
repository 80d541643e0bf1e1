"""Networks that are a chain of maps with a hook point after each: perceptrons, and small transformers at their residual stream."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from crux.config.errors import UserError
from crux.subjects.hooks import check_continuation
from crux.subjects.subject import Clean, Replay


class Chain(nn.Module):
    """A network of consecutive stages; the output of each stage is the activation at a hook point.

    The parameters stay trainable, but a clean pass builds no autograd graph. `forward` runs the whole network, for training and
    `torch.func`.

    Args:
        stages: the stages, keyed by the name of the hook point after each. Dots become underscores in parameter names.
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._names = {name: name.replace(".", "_") for name in stages}
        assert len(set(self._names.values())) == len(stages)
        self.stages = nn.ModuleDict({self._names[name]: stage for name, stage in stages.items()})

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hook points, in order; the last is the output."""
        return tuple(self._names)

    @property
    def output(self) -> str:
        """Name of the last hook point."""
        return self.hooks[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        for stage in self.stages.values():
            inputs = stage(inputs)
        return inputs

    @torch.no_grad()
    def clean(self, inputs: Tensor, *, capture: Collection[str], final: bool) -> Clean:
        """Run the network; see `Network.clean`. `final` of the result is the output."""
        if not final and not capture:
            raise UserError("clean(final=False): nothing to do, capture is empty")
        if unknown := sorted(set(capture) - set(self.hooks)):
            raise UserError(f"{unknown[0]}: no such hook point; there are {', '.join(self.hooks)}")
        captured: dict[str, Tensor] = {}
        value, remaining = inputs, set(capture)
        for name in self.hooks:
            value = self.stages[self._names[name]](value)
            if name in remaining:
                captured[name] = value
                remaining.remove(name)
            if not remaining and not final:
                break
        return Clean(captured, value if final else None, Replay([], {}))

    def continue_from(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        """See `Network.continue_from`. `clean` is not used, because later activations depend only on `value`."""
        check_continuation(self.hooks, start, ends)
        activations = {start: value} if start in ends else {}
        for name in self.hooks[self.hooks.index(start) + 1 :]:
            if len(activations) == len(set(ends)):
                break
            value = self.stages[self._names[name]](value)
            if name in ends:
                activations[name] = value
        return activations
