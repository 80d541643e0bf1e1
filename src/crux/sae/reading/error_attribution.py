"""The share of the network's performance that passes through the error of an SAE, by integrated gradients.

At the hook point that the SAE writes, the clean activation is

    x = μ + Σ_i c_i w_i + (b − μ) − e,      e = x̂ − x,     μ the mean activation,

so that what the network gains from x over μ is attributed to latents, error and bias. With m the mean log-probability of the next token,

    contribution of v = (1/N) Σ_j ∇m(μ + (j + ½)/N · (x − μ)) · v,      j = 0 … N − 1 (midpoint rule),      v = c_i w_i, −e, b − μ,

and the contributions of all v add up to m(x) − m(μ), except for the error of the rule, which is reported (completeness). Sign: positive
contributions raise the probability of the next token. Marks et al. 2403.19647 use one error node per token too, with the left
Riemann sum. For a transcoder, x is the activation at the hook point that it writes.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.config.errors import UserError
from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.ratio_of_sums import ratio_of_sums
from crux.sae.evaluation.reconstruction_passes import Reconstructed, iterate_reconstructions
from crux.sae.label_gradients import clean_with_label_gradients
from crux.sae.losses.label import label_loss
from crux.sae.splicing import check_site
from crux.subjects.subject import Subject

BLOCK = 2**24
"""Number of token-latent pairs that are in memory at once."""


class Shares(NamedTuple):
    """How much of the summed absolute contributions is the error's: Σ_t |error| / (Σ_t |error| + Σ_t Σ_i |latent i|)."""

    everywhere: float | None
    """Over all positions; None if nothing contributes."""
    pos0: float | None
    """Over the tokens at position 0."""
    rest: float | None
    """Over the tokens at the other positions."""
    standard_error: float | None
    """Of `everywhere`, over windows."""
    noise: float | None
    """Expectation of `everywhere` if every token's error had its norm, but an isotropic direction: what chance gives."""


class ErrorAttribution(NamedTuple):
    """Contributions to the mean log-probability of the next token, in nats per prediction; positive raises it."""

    gain: float
    """m(x) − m(μ): CE with the mean activation everywhere, minus the clean CE."""
    latents: Float[np.ndarray, "n_latents"]
    """Contribution of each latent, summed over tokens with its sign."""
    error: float
    """Contribution of the error node x − x̂ = −e."""
    bias: float
    """Contribution of b − μ."""
    completeness: float
    """|latents + error + bias − gain| / |gain|; infinite if there is no gain."""
    error_share: Shares
    """The error's share of the absolute contributions: tokens and latents do not cancel."""
    signed_share: float | None
    """error / (latents + error + bias). Do not quote it alone: contributions of opposite signs cancel. None if they add up to zero."""
    first_order_share: Shares
    """As `error_share`, with |g · v|, where g is the gradient at the clean activation of the summed log-probability of drawn labels."""
    n_steps: int
    n_tokens: int
    """Number of tokens."""


class _Parts(NamedTuple):
    """The contributions of one batch: sums over the latents or none, per token."""

    latents: Float[Tensor, "n_latents"]
    latents_absolute: Float[Tensor, "batch pos"]
    error: Float[Tensor, "batch pos"]
    noise_absolute: Float[Tensor, "batch pos"]
    bias: Float[Tensor, "batch pos"]


@torch.no_grad()
def attribute_to_error(
    subject: Subject,
    site: Site,
    *,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    mean_activation: Float[Tensor, "d_out"],
    n_steps: int,
    seed: int,
    force: bool = False,
) -> ErrorAttribution:
    """Attribute what the network gains from its activation at a hook point to latents, error and bias of an SAE.

    Args:
        batches: held-out windows.
        mean_activation: μ, the mean over *training* tokens at the hook point that the SAE writes, as in `evaluate_sae`.
        n_steps: N, the gradients per batch; 10 suffice where completeness is below 5 %.
        seed: of the drawn labels of `first_order_share`.
        force: as in `evaluate_sae`.

    Raises:
        UserError: if the SAE does not fit the subject, or the text is too short.
    """
    check_site(subject, site, force=force)
    if n_steps < 1:
        raise UserError(f"n_steps={n_steps}: integrated gradients need at least one step")
    mean = mean_activation.to(subject.device).float()
    generator = torch.Generator(subject.device).manual_seed(seed)
    integrated, first_order = _Sums(site.sae.n_latents), _Sums(site.sae.n_latents)
    gain, n_predictions, n_tokens = 0.0, 0, 0
    for batch in iterate_reconstructions(subject, site, batches, description="share of the error"):
        n_tokens += batch.tokens.numel()
        n_predictions += batch.tokens[:, 1:].numel()
        gradient, gained = _integrate(subject, site, batch, mean=mean, n_steps=n_steps)
        gain += gained
        integrated.add(_contributions(site.sae, batch, gradient, mean=mean))
        _, drawn = clean_with_label_gradients(
            subject, batch.tokens, hooks=[site.write], target="sampled", generator=generator, capture=()
        )
        first_order.add(_contributions(site.sae, batch, -drawn[site.write].float(), mean=mean))
    latents = integrated.latents.cpu().numpy() / n_predictions
    error, bias, gain = integrated.error / n_predictions, integrated.bias / n_predictions, gain / n_predictions
    total = float(latents.sum()) + error + bias
    return ErrorAttribution(
        gain, latents, error, bias,
        completeness=abs(total - gain) / abs(gain) if gain != 0 else math.inf,
        error_share=integrated.shares(),
        signed_share=error / total if total != 0 else None,
        first_order_share=first_order.shares(),
        n_steps=n_steps,
        n_tokens=n_tokens,
    )  # fmt: skip


def _integrate(
    subject: Subject, site: Site, batch: Reconstructed, *, mean: Float[Tensor, "d"], n_steps: int
) -> tuple[Float[Tensor, "batch pos d"], float]:
    """Return the mean gradient along the path of the summed log-probability of the next tokens, and what is gained from μ to x."""
    W_U, b_U, softcap = subject.unembed

    def summed_loss(value: Tensor) -> Tensor:
        final = subject.spliced(batch.clean, {site.write: lambda _: value}).final
        return label_loss(
            final, W_U, b_U=b_U, softcap=softcap, tokens=batch.tokens, target="data", generator=None
        )  # fmt: skip

    gradient = torch.zeros_like(batch.x)
    for step in range(n_steps):
        with torch.enable_grad():
            value = (mean + (step + 0.5) / n_steps * (batch.x - mean)).requires_grad_()
            gradient -= torch.autograd.grad(summed_loss(value), value)[0] / n_steps
    return gradient, float(summed_loss(mean.expand_as(batch.x)) - summed_loss(batch.x))


def _contributions(
    sae: SAE, batch: Reconstructed, gradient: Float[Tensor, "batch pos d"], *, mean: Float[Tensor, "d"]
) -> _Parts:
    """Return gradient · v for the latents, the error and the bias of each token."""
    directions = sae.dictionary() / sae.output_scale
    flat = gradient.flatten(0, 1)
    latents = torch.zeros(
        sae.n_latents, dtype=torch.float64, device="cpu" if flat.device.type == "mps" else flat.device
    )
    absolute = []
    for part in torch.arange(len(flat), device=flat.device).split(max(1, BLOCK // sae.n_latents)):
        by_pair = (flat[part] @ directions.T) * batch.codes[part]
        latents += by_pair.sum(0).to(latents)
        absolute.append(by_pair.abs().sum(1))
    error = -(gradient * batch.error).sum(-1)
    noise = gradient.norm(dim=-1) * batch.error.norm(dim=-1) * mean_absolute_cosine(gradient.shape[-1])
    bias = (gradient @ (sae.b_dec / sae.output_scale - mean)).view(batch.tokens.shape)
    return _Parts(latents, torch.cat(absolute).view(batch.tokens.shape), error, noise, bias)


def mean_absolute_cosine(d: int) -> float:
    """Return E|cos| between a fixed and a uniformly random direction in d dimensions: Γ(d/2) / (√π Γ((d + 1)/2))."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


class _Sums:
    """Sums of the contributions over batches."""

    def __init__(self, n_latents: int) -> None:
        self.latents = torch.zeros(n_latents, dtype=torch.float64)
        self.error = self.bias = 0.0
        self._by_window: list[Float[np.ndarray, "window kind subset"]] = []

    def add(self, parts: _Parts) -> None:
        self.latents += parts.latents.cpu()
        self.error += float(parts.error.cpu().double().sum())
        self.bias += float(parts.bias.cpu().double().sum())
        kinds = torch.stack([parts.error.abs(), parts.latents_absolute, parts.noise_absolute], 1).cpu().double()
        self._by_window.append(torch.stack([kinds[..., 0], kinds[..., 1:].sum(-1)], -1).numpy())

    def shares(self) -> Shares:
        sums = np.concatenate(self._by_window)  # subsets: position 0 and the rest
        totals = sums.sum(0)
        error, latents, _ = sums.sum(2).T
        share = ratio_of_sums(error, error + latents)
        return Shares(
            everywhere=None if share is None else share.value,
            pos0=_share(totals[0, 0], totals[1, 0]),
            rest=_share(totals[0, 1], totals[1, 1]),
            standard_error=None if share is None else share.standard_error,
            noise=_share(totals[2].sum(), totals[1].sum()),
        )


def _share(part: float, others: float) -> float | None:
    return float(part / (part + others)) if part + others > 0 else None
