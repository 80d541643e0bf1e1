"""The runs of one job: either all SAEs are one run, or each SAE is a separate run that shares data and clean pass with the others."""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from crux.sae.training.non_finite import NonFiniteLossError


class JobRuns:
    """The names of a job's runs, and the runs that have failed because their loss is no longer finite.

    Args:
        names: one name per SAE if each SAE is a separate run; empty if all SAEs are one run, which has no name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names) or ("",)
        self.separate = len(names) > 0
        self.failed: dict[str, int] = {}
        """The first bad step of each failed run, by name."""
        self.without_tokens: set[str] = set()
        """The failed runs whose loss had no token to count."""

    def error(self, names: Collection[str], *, kept: str) -> NonFiniteLossError:
        """Return the error of some of the failed runs; `kept` says what is kept."""
        at = ", ".join(f"step {self.failed[name]}" + (f" ({name})" if name else "") for name in names)
        return NonFiniteLossError(at=at, no_tokens=self.without_tokens.issuperset(names), kept=kept)

    def mark_failed(self, first_bad: Sequence[int], *, no_tokens: Callable[[], Sequence[bool]]) -> list[int]:
        """Mark the runs that have a first bad step (one entry per run) as failed, and return the indices of the newly failed ones.

        Args:
            no_tokens: returns whether the loss of each run had no token to count; called only if a run has failed.

        Raises:
            NonFiniteLossError: if all runs have failed.
        """
        bad = {i: step for i, step in enumerate(first_bad) if step >= 0}  # −1 if a run has no bad step
        new = [i for i in bad if self.names[i] not in self.failed]
        self.failed |= {self.names[i]: bad[i] for i in new}
        if new:
            empty = no_tokens()
            self.without_tokens |= {self.names[i] for i in new if empty[i]}
        if len(bad) == len(self.names):
            raise self.error(self.names, kept="the last good checkpoint is kept")
        return new

    def row(self, values: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Return one row of the history with the runs that have not failed.

        The keys are `train/<name>`, or `<run>/train/<name>` if runs are separate.
        """
        prefixes = {
            i: f"{run}/train/" if run else "train/" for i, run in enumerate(self.names) if run not in self.failed
        }
        return {prefix + name: by_run[i] for i, prefix in prefixes.items() for name, by_run in values.items()}


@torch.no_grad()
def zero_and_freeze(sae: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Set the SAE of a failed run and its optimiser state to zero, and freeze it, so that no value can be non-finite."""
    for parameter in sae.parameters():
        parameter.requires_grad_(False).grad = None
        for value in (parameter, *optimizer.state.get(parameter, {}).values()):
            value.zero_()  # in place, since the checkpoint that is being written refers to these tensors
