"""How an intervention changes next-token distributions: centred effects, their consistency, and where its KL is spent."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KlParts(NamedTuple):
    """The KL(p ‖ q) of each context, divided by the chain rule for a set T of target tokens; in nats.

    total = on_target + within_target + side_effect. P and Q are the clean and the steered probability of T.
    """

    total: Float[Tensor, "contexts"]
    on_target: Float[Tensor, "contexts"]
    """P ln(P/Q) + (1−P) ln((1−P)/(1−Q)): what it takes to move probability into or out of T."""
    within_target: Float[Tensor, "contexts"]
    """P · KL(p_T ‖ q_T): the change among the tokens of T."""
    side_effect: Float[Tensor, "contexts"]
    """(1−P) · KL(p_rest ‖ q_rest): the change among all other tokens."""


def split_kl(
    log_p: Float[Tensor, "contexts d_vocab"], log_q: Float[Tensor, "contexts d_vocab"], target: Int[Tensor, "targets"]
) -> KlParts:
    """Divide KL(p ‖ q) exactly into moving probability to the target tokens, changes among them, and changes among the others.

    Both distributions should be in float64; `target` is a proper, non-empty subset of the vocabulary without repetition.
    """
    in_target = torch.zeros(log_p.shape[-1], dtype=torch.bool, device=log_p.device)
    in_target[target] = True

    def split(part: Tensor) -> tuple[Tensor, Tensor]:
        """Return mass · ln(mass ratio) and mass · KL of the conditional distributions."""
        a, b = log_p[:, part], log_q[:, part]
        log_ratio = a.logsumexp(-1) - b.logsumexp(-1)
        p = a.exp()
        return p.sum(-1) * log_ratio, (p * (a - b - log_ratio[:, None])).sum(-1)

    mass_in, within = split(in_target)
    mass_out, outside = split(~in_target)
    total = (log_p.exp() * (log_p - log_q)).sum(-1)
    return KlParts(total, mass_in + mass_out, within, outside)


def centre_effects(
    log_p: Float[Tensor, "*contexts d_vocab"], log_q: Float[Tensor, "*contexts d_vocab"]
) -> Float[Tensor, "*contexts d_vocab"]:
    """Return Δ = log q − log p minus its mean over the vocabulary: the change of the logits, which have no origin."""
    delta = log_q - log_p
    return delta - delta.mean(-1, keepdim=True)


def measure_consistency(effects: Float[Tensor, "contexts d_vocab"]) -> float:
    """Return the mean cosine of the centred effects in two different contexts: 1 if it is the same everywhere.

    NaN with less than two contexts.
    """
    n = len(effects)
    if n < 2:
        return float("nan")
    units = torch.nn.functional.normalize(effects.double(), dim=-1)
    return float((units.sum(0).square().sum() - units.square().sum()) / (n * (n - 1)))


def measure_mode_share(effects: Float[Tensor, "contexts d_vocab"]) -> float:
    """Return the share of contexts whose most promoted token is the most common one."""
    return float(torch.bincount(effects.argmax(-1)).max() / len(effects))


def measure_top_overlap(a: Float[Tensor, "d_vocab"], b: Float[Tensor, "d_vocab"], *, n_top: int) -> float:
    """Return the share of the `n_top` tokens that are largest in `a` which are also among those of `b`."""
    n_top = min(n_top, len(a))
    return float(torch.isin(a.topk(n_top).indices, b.topk(n_top).indices).float().mean())


def correlate(a: Float[Tensor, "*rows n"], b: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    """Return the Pearson correlation over the last axis, in float64; NaN if either is constant."""
    a, b = (x.double() - x.double().mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
