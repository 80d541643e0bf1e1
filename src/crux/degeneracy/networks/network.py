"""The interface of networks with hook points: a clean pass, and a pass that continues from a changed activation."""

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
        """Run the unmodified network and return the activations at the hooks in `capture`.

        With `final=False` the pass stops after the last captured hook.
        """
        ...

    def continue_from(self, clean: Clean, start: str, value: Tensor, *, ends: Collection[str]) -> dict[str, Tensor]:
        """Return the activations at `ends` with `value` in place of the activation at `start`, which `clean` captured.

        Gradients flow to `value`. The pass stops at the last end.

        Raises:
            UserError: if a hook does not exist, an end comes before `start`, or `clean` has not captured `start`.
        """
        ...
