"""Spliced passes over any windows of one clean pass, in which vectors are added to the activation at a hook point."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.losses.readout import logits, token_chunks, token_cross_entropy
from crux.subjects.subject import Clean, Subject, Unembed


class ContextPool(NamedTuple):
    """The clean pass of some windows, any of which can be run again, any number of times, with a changed activation at one hook point."""

    subject: Subject
    hook: str
    """The hook point at which the activation is changed."""
    tokens: Int[Tensor, "windows length"]
    """Token ids, on the subject's device."""
    clean: Clean
    """The clean pass of all windows, with the activation at `hook`."""

    @property
    def x(self) -> Float[Tensor, "windows length d"]:
        """The clean activation at the hook point."""
        return self.clean.activations[self.hook]

    @property
    def final(self) -> Float[Tensor, "windows length d_model"]:
        """The clean residual stream after the final norm."""
        assert self.clean.final is not None
        return self.clean.final

    @torch.no_grad()
    def run(
        self, windows: Int[Tensor, "runs"], change: Float[Tensor, "runs length d"]
    ) -> Float[Tensor, "runs length d_model"]:
        """Return the final hidden states of the chosen windows after adding `change` to their activation at the hook point."""
        carried = tuple(tensor[windows] for tensor in self.clean.replay.carried[self.hook])
        replay = self.clean.replay._replace(carried={self.hook: carried})
        chosen = Clean({self.hook: self.x[windows]}, None, replay)
        return self.subject.spliced(chosen, {self.hook: lambda x: x + change}).final

    def run_vectors(
        self,
        windows: Int[Tensor, "runs"],
        *,
        positions: Int[Tensor, "runs"],
        vectors: Float[Tensor, "runs d"],
        onward: bool,
    ) -> Float[Tensor, "runs length d_model"]:
        """Return the final hidden states after adding one vector per run at its position or, if `onward`, from its position to the end."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        where = index >= positions[:, None] if onward else index == positions[:, None]
        return self.run(windows, where[..., None] * vectors.to(self.x.dtype)[:, None])


@torch.no_grad()
def run_pool(
    subject: Subject, windows: Int[Tensor, "windows length"], *, hook: str, batch: int, capture: Collection[str] = ()
) -> ContextPool:
    """Run the clean pass of some windows, `batch` at a time, and keep what spliced passes from `hook` need.

    Memory: windows × length × d_model numbers for each captured hook point and for the final hidden state.

    Args:
        capture: further hook points whose activations are kept.

    Raises:
        UserError: as `Subject.clean`.
    """
    tokens = windows.to(subject.device)
    names = {hook, *capture}
    parts = [subject.clean(part, capture=names) for part in tokens.split(batch)]
    activations = {name: torch.cat([part.activations[name] for part in parts]) for name in names}
    carried = {
        name: tuple(torch.cat(tensors) for tensors in zip(*(part.replay.carried[name] for part in parts), strict=True))
        for name in names
    }
    final = torch.cat([part.final for part in parts if part.final is not None])
    return ContextPool(subject, hook, tokens, Clean(activations, final, parts[0].replay._replace(carried=carried)))


def run_chunks(n_runs: int, *, length: int, max_tokens: int) -> Iterator[slice]:
    """Return slices of runs of `length` tokens each that have at most `max_tokens` tokens together, or one run."""
    step = max(1, max_tokens // length)
    return (slice(first, min(first + step, n_runs)) for first in range(0, n_runs, step))


def log_probabilities(final: Float[Tensor, "*tokens d_model"], unembed: Unembed) -> Float[Tensor, "*tokens d_vocab"]:
    """Return log-probabilities of the next token in float64, computed from float32 logits; the caller bounds the number of tokens."""
    W_U, b_U, softcap = unembed
    z = logits(final.flatten(0, -2), W_U, b_U=b_U, softcap=softcap)
    return z.double().log_softmax(-1).unflatten(0, final.shape[:-1])


def precise_kl(
    log_p: Float[Tensor, "*tokens d_vocab"], log_q: Float[Tensor, "*tokens d_vocab"]
) -> Float[Tensor, "*tokens"]:
    """Return KL(p ‖ q) per token in nats, precise also if p and q hardly differ.

    KL = Σ_v p_v (e^{δ_v} − 1 − δ_v) with δ = log q − log p, since Σ_v p_v e^{δ_v} = 1. No term is negative, so that nothing cancels.
    """
    delta = log_q - log_p
    return (log_p.exp() * (delta.expm1() - delta)).sum(-1)


class TokenChanges(NamedTuple):
    """The change of the predictions of a changed pass, per token."""

    kl: Float[Tensor, "runs length"]
    """KL(clean ‖ changed) of the next-token distributions, in nats; float64."""
    ce_increase: Float[Tensor, "runs length-1"]
    """Increase of the cross-entropy of the text's next token, in nats; the last position has no next token."""


@torch.no_grad()
def compare_tokens(
    clean: Float[Tensor, "runs length d_model"],
    changed: Float[Tensor, "runs length d_model"],
    *,
    tokens: Int[Tensor, "runs length"],
    unembed: Unembed,
) -> TokenChanges:
    """Compare final hidden states of a clean and a changed pass token by token, in chunks: a tokens × vocab tensor never exists."""
    labels = tokens.roll(-1, 1).flatten()
    clean, changed = clean.flatten(0, 1), changed.flatten(0, 1)
    kl, increase = [], []
    for part in token_chunks(len(labels), len(unembed.W_U), labels.device):
        log_p, log_q = log_probabilities(clean[part], unembed), log_probabilities(changed[part], unembed)
        kl.append(precise_kl(log_p, log_q))
        increase.append(token_cross_entropy(log_q, labels[part]) - token_cross_entropy(log_p, labels[part]))
    return TokenChanges(torch.cat(kl).view_as(tokens), torch.cat(increase).view_as(tokens)[:, :-1])


@torch.no_grad()
def next_token_loss(
    final: Float[Tensor, "runs length d_model"], tokens: Int[Tensor, "runs length"], unembed: Unembed
) -> Float[Tensor, "runs length-1"]:
    """Return the cross-entropy of the text's next token at each position but the last, in nats, from final hidden states, in chunks."""
    h, labels = final[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    losses = [
        token_cross_entropy(log_probabilities(h[part], unembed), labels[part])
        for part in token_chunks(len(labels), len(unembed.W_U), labels.device)
    ]
    return torch.cat(losses).view(len(tokens), -1)
