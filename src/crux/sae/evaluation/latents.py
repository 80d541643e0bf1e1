"""What single latents respond to, and what they push the network to say: the material of the latents' page."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.progress import track
from crux.sae.architectures.sae import SAE
from crux.subjects.subject import Subject, Unembed

NO_TOKEN = -1
"""Fills a context beyond the window's ends, and contexts of a latent that fires in fewer windows than asked for."""


class Contexts(NamedTuple):
    """Where each latent fires most: one context a held-out window, strongest first; on the CPU."""

    latents: Int[Tensor, "latents"]
    """Indices in the dictionary."""
    densities: Float[Tensor, "latents"]
    """Share of the tokens read on which the latent fires."""
    tokens: Int[Tensor, "latents contexts width"]
    """Token ids around the peak, which stands at index `before`; `NO_TOKEN` where there is none."""
    activations: Float[Tensor, "latents contexts width"]
    """The latent's code on each of them."""


class LogitEffects(NamedTuple):
    """Which tokens a latent's direction makes likelier and unlikelier, strongest first; on the CPU."""

    promoted: Int[Tensor, "latents top"]
    """Token ids with the largest effects."""
    promoted_effects: Float[Tensor, "latents top"]
    """Logits per unit of direction, above the vocabulary's mean."""
    suppressed: Int[Tensor, "latents top"]
    """Token ids with the smallest effects."""
    suppressed_effects: Float[Tensor, "latents top"]
    """Negative where the effect is below the vocabulary's mean."""


def choose_latents(
    densities: Float[Tensor, "n_latents"], maxima: Float[Tensor, "n_latents"], *, n: int
) -> Int[Tensor, "chosen"]:
    """Up to n alive latents, densest first.

    A third of them have the largest codes, the others are evenly spread over the ranks of density.
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
) -> Contexts:
    """The `n_contexts` windows in which each latent's code peaks highest, cut to the tokens about the peak.

    A context has `before` + 1 + `after` tokens. One pass over the batches, the network's prefix alone; all latents at
    once, and only the running best are kept.
    """
    device, n, width = subject.device, len(latents), before + 1 + after
    chosen = latents.to(device)
    offsets = torch.arange(-before, after + 1, device=device)
    peaks = torch.zeros(n, 0, device=device)
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
        peak, place = codes.max(-1)
        peak, window = peak.topk(min(n_contexts, batch), dim=1)
        place = place.gather(1, window)[..., None] + offsets
        inside = (place >= 0) & (place < pos)
        flat = window[..., None] * pos + place.clamp(0, pos - 1)
        found = torch.where(inside, tokens.flatten()[flat], NO_TOKEN)
        codes_there = codes.flatten(1).gather(1, flat.flatten(1)).view_as(flat) * inside

        peaks, order = torch.cat([peaks, peak], 1).topk(min(n_contexts, peaks.shape[1] + peak.shape[1]), dim=1)
        order = order[..., None].expand(-1, -1, width)
        best_tokens = torch.cat([best_tokens, found], 1).gather(1, order)
        best_codes = torch.cat([best_codes, codes_there], 1).gather(1, order)

    fires = (peaks > 0)[..., None]
    best_tokens, best_codes = torch.where(fires, best_tokens, NO_TOKEN), best_codes * fires
    densities = fired.float() / max(n_tokens, 1)
    return Contexts(latents.cpu(), densities.cpu(), best_tokens.cpu(), best_codes.cpu())


@torch.no_grad()
def logit_effects(directions: Float[Tensor, "latents d_model"], unembed: Unembed, *, n_top: int) -> LogitEffects:
    """direction @ W_Uᵀ, less its mean over the vocabulary: a latent's direct way to the logits, past all later blocks.

    The final norm is left out: its scale differs from token to token, and its weights count only where they are not
    folded into W_U (`process_weights`).
    """
    effects = directions.to(unembed.W_U) @ unembed.W_U.T
    effects = (effects - effects.mean(-1, keepdim=True)).float().cpu()
    n_top = min(n_top, effects.shape[-1])
    promoted, suppressed = effects.topk(n_top), effects.topk(n_top, largest=False)
    return LogitEffects(promoted.indices, promoted.values, suppressed.indices, suppressed.values)
