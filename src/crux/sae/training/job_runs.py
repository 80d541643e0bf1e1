"""The runs of one job: all SAEs together, or each SAE by itself next to others that share its data and its clean pass."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from crux.sae.training.non_finite import NonFiniteLossError


class JobRuns:
    """Names of a job's runs, and which of them have ended early.

    Args:
        names: one per SAE, each of which is a run of its own. Empty: all SAEs are one run without a name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names) or ("",)
        self.separate = len(names) > 0
        self.failed: dict[str, int] = {}
        """The runs that have ended, and their first bad step."""

    def end(self, first_bad: Sequence[int]) -> list[int]:
        """Mark the runs with a first bad step as ended and return the indices of those that had not yet.

        Raises:
            NonFiniteLossError: if no run is left.
        """
        bad = {i: step for i, step in enumerate(first_bad) if step >= 0}
        if len(bad) == len(self.names):
            at = [f"step {step}" + (f" ({self.names[i]})" if self.separate else "") for i, step in bad.items()]
            raise NonFiniteLossError(at=", ".join(at), kept="the last good checkpoint is kept")
        new = [i for i in bad if self.names[i] not in self.failed]
        self.failed |= {self.names[i]: bad[i] for i in new}
        return new

    def row(self, values: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return one row of the history for the runs that go on: `train/<name>`, or `<run>/train/<name>` of several."""
        prefixes = {
            i: f"{run}/train/" if run else "train/" for i, run in enumerate(self.names) if run not in self.failed
        }
        return {prefix + name: each[i] for i, prefix in prefixes.items() for name, each in values.items()}


@torch.no_grad()
def zero_and_freeze(sae: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Zero an ended run's SAE and its optimiser state, and freeze it: nothing is left that could be non-finite, or move."""
    for parameter in sae.parameters():
        parameter.requires_grad_(False).grad = None
        for value in (parameter, *optimizer.state.get(parameter, {}).values()):
            value.zero_()  # in place: the checkpoint that is being written holds these very tensors
