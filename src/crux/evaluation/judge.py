"""The judgement: how much of what the network computes survives an SAE, on held-out text, the same for every loss.

Per batch: one clean pass, one spliced pass and, with `ablations`, one pass each with zeros and with the mean
activation in the SAE's place. Sums stay on the device until the end; all arithmetic here is in float32, whatever the
networks' own dtype (a judgement to be quoted wants both in float32).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.evaluation.predictions import compare_predictions
from crux.evaluation.running_sums import SUBSETS, UNDEFINED, Reconstructions, TokenMeans, sum_dtype
from crux.saes.sae import SAE
from crux.subjects.hooks import later_residuals, parse_hook
from crux.subjects.subject import Subject


class Judgement(NamedTuple):
    """How good an SAE is."""

    metrics: dict[str, float]
    """Flat names, those of metrics.json without its `final/`; what has no value (see `evaluate`) is left out."""
    densities: Float[Tensor, "n_latents"]
    """Share of the held-out tokens on which each latent fires; on the CPU."""
    n_tokens: int
    """Tokens that were read."""
    maxima: Float[Tensor, "n_latents"]
    """Largest code of each latent on them, 0 where it never fires; on the CPU."""


@torch.no_grad()
def evaluate(
    subject: Subject,
    sae: SAE,
    *,
    hook: str,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    mean_activation: Float[Tensor, "d_model"],
    ablations: bool = True,
) -> Judgement:
    """Judges `sae` at `hook` on held-out token windows. Every name but `alive_…` comes again with `/pos0` and `/rest`.

    Over the T−1 predictions of a window (CE at t predicts t+1, and belongs to position t), in nats:
        ce_clean, ce_spliced, ce_zero, ce_mean     cross-entropy of the four passes
        ce_increase                                ce_spliced − ce_clean; positive is worse
        loss_recovered_zero, loss_recovered_mean   (ce_ablated − ce_spliced) / (ce_ablated − ce_clean)
    Over all T positions:
        kl                                         KL(clean ‖ spliced), nats
        top1_agreement                             share of positions whose likeliest next token stays the same
        l0                                         non-zero latents per token
        mse, explained_variance                    of the reconstruction; mse is a mean over tokens and dimensions
        cosine, norm_ratio                         means per token of cos(x̂, x) and ‖x̂‖/‖x‖
        downstream_mse/<k>, downstream_ev/<k>      the same two for the residual entering block k, spliced against clean
        alive_heldout_<N>, alive_heldout_<N>_frac  latents that fired at least once in the N tokens read

    Args:
        mean_activation: the mean over *training* tokens: what mean ablation puts at every position.
        ablations: False leaves out the two ablated passes with what follows from them (a short pass during training).

    A metric without a value is left out: an explained variance where the activation does not vary (position 0, where
    every window starts with the same token), a loss recovered where ablation costs nothing, `/rest` of predictions
    where T = 2.

    Raises:
        ValueError: where there are no batches, a window has less than two tokens, the SAE's width is not the hook
            point's, or the hook point does not exist.
    """
    later = {_entered_block(name): name for name in later_residuals(hook, n_layers=subject.n_layers)}
    means, local = TokenMeans(), Reconstructions()
    downstream = {k: Reconstructions() for k in later}
    fired = torch.zeros(sae.n_latents, device=subject.device, dtype=torch.int64)
    maxima = torch.zeros(sae.n_latents, device=subject.device)
    mean_activation = mean_activation.to(subject.device)
    n_tokens = 0

    for tokens in batches:
        if tokens.shape[1] < 2:
            raise ValueError("a held-out window has 1 token; a next-token prediction needs at least 2")
        tokens = tokens.to(subject.device)
        n_tokens += tokens.numel()
        clean = subject.clean(tokens, capture=[hook, *later.values()], final=True)
        activation = clean.activations[hook]
        if activation.shape[-1] != sae.d_model:
            raise ValueError(f"the SAE reads {sae.d_model} dimensions, {hook} has {activation.shape[-1]}")

        x = activation.flatten(0, -2).float()
        codes = sae.encode(x)
        fires = codes.c != 0
        fired += fires.sum(0)
        maxima = torch.maximum(maxima, codes.c.amax(0))
        x_hat = sae.decode(codes)
        spliced = subject.spliced(clean, {hook: _put(x_hat)}, capture=list(later.values()))

        assert clean.final is not None, "a clean pass with final=True ends with the final hidden state"
        finals = {"clean": clean.final, "spliced": spliced.final}
        if ablations:
            finals["zero"] = subject.spliced(clean, {hook: torch.zeros_like}).final
            finals["mean"] = subject.spliced(clean, {hook: _put(mean_activation)}).final
        labels = F.pad(tokens[:, 1:], (0, 1))  # the last position has no next token: its CE is cut off below
        read_out = compare_predictions(
            {name: final.flatten(0, 1) for name, final in finals.items()},
            labels=labels.flatten(),
            unembed=subject.unembed,
        )

        for name, ce in read_out.ce.items():
            means.add(f"ce_{name}", ce.view_as(tokens)[:, :-1])
        means.add("kl", read_out.kl.view_as(tokens))
        means.add("top1_agreement", read_out.agrees.view_as(tokens))
        means.add("l0", fires.sum(-1).view_as(tokens))
        means.add("cosine", F.cosine_similarity(x_hat, x, dim=-1).view_as(tokens))
        means.add("norm_ratio", (x_hat.norm(dim=-1) / x.norm(dim=-1)).view_as(tokens))
        local.add(activation, x_hat.view_as(activation))
        for k, name in later.items():
            downstream[k].add(clean.activations[name], spliced.activations[name])

    if n_tokens == 0:
        raise ValueError("there is no held-out text to judge on: not one batch")

    found = means.means()
    for suffix in SUBSETS:
        if f"ce_clean{suffix}" in found:
            found |= _from_cross_entropies(found, suffix)
    for name, values in local.results().items():
        found |= {name + suffix: value for suffix, value in values.items()}
    for k, stream in downstream.items():
        results = stream.results()
        found |= {f"downstream_mse/{k}{suffix}": value for suffix, value in results["mse"].items()}
        found |= {f"downstream_ev/{k}{suffix}": value for suffix, value in results["explained_variance"].items()}
    dtype = sum_dtype(subject.device)
    alive = (fired > 0).sum().to(dtype)
    found |= {f"alive_heldout_{n_tokens}": alive, f"alive_heldout_{n_tokens}_frac": alive / sae.n_latents}

    numbers = torch.stack([value.to(dtype) for value in found.values()]).tolist()
    metrics = {name: number for name, number in zip(found, numbers, strict=True) if number != UNDEFINED}
    densities = (fired.to(dtype) / n_tokens).float().cpu()
    return Judgement(metrics=metrics, densities=densities, n_tokens=n_tokens, maxima=maxima.cpu())


def _entered_block(residual: str) -> int:
    """k of the residual entering block k; n_layers for the last `hook_resid_post`."""
    hook = parse_hook(residual)
    return hook.layer + (hook.kind == "resid_post")


def _put(value: Float[Tensor, "*tokens d_model"]) -> Callable[[Tensor], Tensor]:
    """A splice that puts one vector a token, or one vector at every token, in place of the activation."""

    def splice(activation: Tensor) -> Tensor:
        value_here = value.to(activation.dtype)
        return value_here.view_as(activation) if value.ndim > 1 else value_here.expand_as(activation)

    return splice


def _from_cross_entropies(found: dict[str, Tensor], suffix: str) -> dict[str, Tensor]:
    """What the four cross-entropies of a subset say together."""
    clean, spliced = found[f"ce_clean{suffix}"], found[f"ce_spliced{suffix}"]
    derived = {f"ce_increase{suffix}": spliced - clean}
    for ablation in ("zero", "mean"):
        if (ablated := found.get(f"ce_{ablation}{suffix}")) is not None:
            recovered = torch.where(ablated == clean, UNDEFINED, (ablated - spliced) / (ablated - clean))
            derived[f"loss_recovered_{ablation}{suffix}"] = recovered
    return derived
