"""The contexts that activate single latents, and their effects on the logits, for the page of latents."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.sae.splicing import check_reader
from crux.subjects.subject import Subject, Unembed

NO_TOKEN = -1
"""Fills a context beyond the ends of its window, and missing contexts of a latent that fires in few windows."""

LOGITS_PER_BLOCK = 1 << 25
"""Number of logit effects in memory at a time."""


class Contexts(NamedTuple):
    """The contexts in which each latent fires most, at most one per held-out window, strongest first; on the CPU."""

    latents: Int[Tensor, "latents"]
    """Indices of the latents in the dictionary."""
    densities: Float[Tensor, "latents"]
    """The share of held-out tokens on which each latent fires."""
    tokens: Int[Tensor, "latents contexts width"]
    """Token ids around the peak, which is at index `before`; `NO_TOKEN` if there is no token."""
    activations: Float[Tensor, "latents contexts width"]
    """The code of the latent on each of these tokens."""


class LogitEffects(NamedTuple):
    """The tokens that each latent's direction makes more and less likely, strongest first; on the CPU."""

    promoted: Int[Tensor, "latents top"]
    """Token ids with the largest effects."""
    promoted_effects: Float[Tensor, "latents top"]
    """Logits per unit of direction, above the vocabulary's mean."""
    suppressed: Int[Tensor, "latents top"]
    """Token ids with the smallest effects."""
    suppressed_effects: Float[Tensor, "latents top"]
    """Logits per unit of direction, relative to the vocabulary's mean; usually negative."""


def choose_latents(
    densities: Float[Tensor, "n_latents"], maxima: Float[Tensor, "n_latents"], *, n: int
) -> Int[Tensor, "chosen"]:
    """Return the indices of up to n alive latents, densest first.

    A third of them are those with the largest codes; the others are evenly spaced in the order of density.
    """
    by_density = densities.argsort(descending=True, stable=True)
    by_density = by_density[densities[by_density] > 0]
    if len(by_density) <= n:
        return by_density
    chosen = torch.zeros(len(densities), dtype=torch.bool)
    chosen[maxima.argsort(descending=True, stable=True)[: n // 3]] = True
    others = by_density[~chosen[by_density]]
    spread = torch.linspace(0, len(others) - 1, n - int(chosen.sum())).round().long()
    chosen[others[spread]] = True
    return by_density[chosen[by_density]]


@torch.no_grad()
def strongest_contexts(
    subject: Subject,
    sae: SAE,
    *,
    hook: str,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    latents: Int[Tensor, "latents"],
    n_contexts: int,
    before: int,
    after: int,
    force: bool = False,
) -> Contexts:
    """Return the contexts with the largest codes of each latent: the tokens around the peak in `n_contexts` windows.

    A context has `before` + 1 + `after` tokens. This takes one pass over the batches for all latents, and runs only the
    network's prefix. In memory are only the best contexts so far.

    Args:
        force: read a loaded SAE on another model, with another weight processing or at another hook point than its metadata name, too.

    Raises:
        UserError: if a loaded SAE does not belong there.
    """
    check_reader(subject, sae, hook=hook, force=force)
    device, n, width = subject.device, len(latents), before + 1 + after  # n latents, width tokens per context
    chosen = latents.to(device)
    offsets = torch.arange(-before, after + 1, device=device)
    # the best contexts of all batches so far, strongest first: the code at the peak, token ids, and codes
    best_peaks = torch.zeros(n, 0, device=device)
    best_tokens = torch.full((n, 0, width), NO_TOKEN, device=device)
    best_codes = torch.zeros(n, 0, width, device=device)
    fired, n_tokens = torch.zeros(n, dtype=torch.int64, device=device), 0

    for tokens in track(batches, "reading what activates the latents"):
        tokens = tokens.to(device)
        batch, pos = tokens.shape
        n_tokens += tokens.numel()
        activation = subject.clean(tokens, capture=[hook], final=False).activations[hook]
        codes = sae.encode(activation.flatten(0, 1).float()).c[:, chosen].T.reshape(n, batch, pos)
        fired += (codes != 0).sum((1, 2))
        peaks, peak_positions = codes.max(-1)  # of each latent in each window
        peaks, windows = peaks.topk(min(n_contexts, batch), dim=1)
        positions = peak_positions.gather(1, windows)[..., None] + offsets  # latents × contexts × width
        in_window = (positions >= 0) & (positions < pos)
        flat_positions = windows[..., None] * pos + positions.clamp(0, pos - 1)
        context_tokens = torch.where(in_window, tokens.flatten()[flat_positions], NO_TOKEN)
        context_codes = codes.flatten(1).gather(1, flat_positions.flatten(1)).view_as(flat_positions) * in_window

        all_peaks = torch.cat([best_peaks, peaks], 1)
        best_peaks, order = all_peaks.topk(min(n_contexts, all_peaks.shape[1]), dim=1)
        order = order[..., None].expand(-1, -1, width)
        best_tokens = torch.cat([best_tokens, context_tokens], 1).gather(1, order)
        best_codes = torch.cat([best_codes, context_codes], 1).gather(1, order)

    fires = (best_peaks > 0)[..., None]  # a window in which the latent does not fire is no context of it
    best_tokens, best_codes = torch.where(fires, best_tokens, NO_TOKEN), best_codes * fires
    densities = fired.float() / max(n_tokens, 1)
    return Contexts(latents.cpu(), densities.cpu(), best_tokens.cpu(), best_codes.cpu())


@torch.no_grad()
def logit_effects(directions: Float[Tensor, "latents d_model"], unembed: Unembed, *, n_top: int) -> LogitEffects:
    """Return the direct effects on the logits: direction @ W_Uᵀ minus its mean over the vocabulary, without later blocks.

    The final norm is ignored: its scale differs between tokens, and its weights are part of W_U if they are folded into it
    (`process_weights`). Memory holds the effects of some latents at a time.
    """
    n_top, found = min(n_top, len(unembed.W_U)), []
    blocks = directions.split(max(1, LOGITS_PER_BLOCK // len(unembed.W_U)))
    for block in track(blocks, "mapping latents to logits") if len(blocks) > 8 else blocks:
        effects = block.to(unembed.W_U) @ unembed.W_U.T
        effects = (effects - effects.mean(-1, keepdim=True)).float()
        promoted, suppressed = effects.topk(n_top), effects.topk(n_top, largest=False)
        found.append((promoted.indices, promoted.values, suppressed.indices, suppressed.values))
    return LogitEffects(*(torch.cat(parts).cpu() for parts in zip(*found, strict=True)))
