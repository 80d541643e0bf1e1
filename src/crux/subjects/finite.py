"""Find NaN and infinity in a network: in its weights, and in the activations of a clean pass."""

import torch
from jaxtyping import Int
from torch import Tensor

from crux.subjects.hooks import FINAL, hook_names
from crux.subjects.subject import Subject

PROBE_TOKENS = 16
"""Length of the sequence with which a network is tried."""


def describe_non_finite(value: Tensor) -> str | None:
    """Return the first index whose value is NaN or infinite, with the value and how many there are; None if all are finite."""
    finite = value.isfinite()
    if finite.all():
        return None
    first = (~finite).nonzero()[0].tolist()
    return f"{first} is {value[tuple(first)].item()}, {int((~finite).sum()):,} of {value.numel():,} are not finite"


@torch.no_grad()
def locate_non_finite(subject: Subject, tokens: Int[Tensor, "batch pos"]) -> str | None:
    """Return the first place in the network where a clean pass on these tokens is NaN or infinite; None if there is none.

    The places are the hook points in the network's order, the residual stream after the final norm, and the logits.
    """
    names = [*hook_names(subject.n_layers, resid_mid=not subject.parts.parallel), FINAL]
    activations = subject.clean(tokens.to(subject.device), capture=names).activations
    for name in names:
        if (what := describe_non_finite(activations[name])) is not None:
            return f"{name}{what}"
    unembed = subject.unembed
    for final in (
        activations[FINAL].flatten(0, 1).split(PROBE_TOKENS)
    ):  # the logits of all tokens may not fit into memory
        logits = final @ unembed.W_U.T
        logits = logits if unembed.b_U is None else logits + unembed.b_U
        if (what := describe_non_finite(logits)) is not None:
            return f"logits{what}"
    return None


def probe_tokens(subject: Subject) -> Int[Tensor, "1 pos"]:
    """Return one short sequence of tokens from the whole vocabulary."""
    n = min(PROBE_TOKENS, subject.n_ctx)
    return torch.linspace(0, subject.d_vocab - 1, n, device=subject.device).long()[None]
