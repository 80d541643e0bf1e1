"""The mean activation over training tokens, which is used for mean ablation and as the initial decoder bias."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.config.progress import track
from crux.subjects.finite import locate_non_finite
from crux.subjects.subject import Subject


class TypicalActivation(NamedTuple):
    """The mean and the mean norm of an activation over tokens."""

    mean: Float[Tensor, "d"]
    """The mean activation, in float32."""
    norm: float
    """The mean of ‖x‖, in activation units."""


@torch.no_grad()
def measure_typical_activation(
    subject: Subject, *, hook: str, batches: Iterable[Int[Tensor, "_batch _pos"]]
) -> TypicalActivation:
    """Return the mean and the mean norm of the activation at one hook point; only the subject's prefix runs.

    Raises:
        UserError: if there are no batches, or an activation is NaN or infinite; the message says where in the network it arises.
    """
    n_tokens, total, norms = 0, None, None
    for tokens in track(batches, f"mean activation at {hook}"):
        clean = subject.clean(tokens.to(subject.device), capture=(hook,), final=False)
        x = clean.activations[hook].flatten(0, 1).double()
        total = x.sum(0) if total is None else total + x.sum(0)
        norms = x.norm(dim=-1).sum() if norms is None else norms + x.norm(dim=-1).sum()
        n_tokens += len(x)
        if not norms.isfinite():
            where = locate_non_finite(subject, tokens) or hook
            raise UserError(f"the network computes numbers that are not finite on the training text: {where}")
    if total is None or norms is None:
        raise UserError("there is no training text from which to compute the mean activation")
    return TypicalActivation((total / n_tokens).float(), float(norms / n_tokens))
