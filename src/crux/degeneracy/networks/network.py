"""What a network must offer for its layers to be looked at together: a pass that is kept, and what follows from another activation."""

from collections.abc import Collection
from typing import Protocol, runtime_checkable

from torch import Tensor

from crux.subjects.subject import Clean


@runtime_checkable  # for the tests' checks at run time
class Network(Protocol):
    """A frozen network with hook points: a `Subject`, or a `Chain`."""

    @property
    def hooks(self) -> tuple[str, ...]:
        """Names of the hook points, in the network's order."""
        ...

    def clean(self, inputs: Tensor, /, *, capture: Collection[str], final: bool) -> Clean:
        """Runs the network untouched and keeps the activations at the hooks in `capture`; with `final=False` no further than it must."""
        ...

    def onward(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        """The activations at `ends` with `value` in place of the one at `start`, which `clean` captured; gradients flow to `value`.

        Nothing behind the last end is run.

        Raises:
            UserError: for a hook that does not exist, that lies before `start`, or that `clean` has not captured.
        """
        ...
