"""The evaluation of one SAE on held-out text: how much of what the network computes is preserved. It is the same for every loss.

Per batch it takes one clean pass, one spliced pass and, with `ablations`, two passes in which zeros or the mean activation
replace the activation. Sums stay on the device until the end. All arithmetic here is in float32, whatever the dtype of the
network; results that are to be quoted need the network and the SAE in float32 too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.sae import SAE
from crux.sae.architectures.site import Site
from crux.sae.evaluation.prediction_metrics import PredictionMetrics, iterate_held_out, replace_with, to_numbers
from crux.sae.evaluation.running_sums import UNDEFINED, ReconstructionSums, sum_dtype
from crux.sae.label_gradients import clean_with_label_gradients
from crux.sae.losses.label import LabelTarget
from crux.sae.splicing import check_site
from crux.subjects.hooks import later_residuals, parse_hook
from crux.subjects.subject import Clean, Subject


class SaeEvaluation(NamedTuple):
    """The evaluation of an SAE: metrics, and statistics of its latents."""

    metrics: dict[str, float]
    """The metrics by their names in metrics.json, without `final/`. Metrics without a value (see `evaluate_sae`) are left out."""
    densities: Float[Tensor, "n_latents"]
    """The share of held-out tokens on which each latent fires; on the CPU."""
    n_tokens: int
    """Number of held-out tokens."""
    maxima: Float[Tensor, "n_latents"]
    """The largest code of each latent on the held-out tokens, 0 if it never fires; on the CPU."""


@torch.no_grad()
def evaluate_sae(
    subject: Subject,
    sae: SAE,
    *,
    hook: str,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    mean_activation: Float[Tensor, "d_out"],
    ablations: bool = True,
    output_hook: str | None = None,
    gradient: LabelTarget | None = None,
    force: bool = False,
) -> SaeEvaluation:
    """Evaluate `sae` at `hook` on held-out token windows.

    All metrics but `alive_…` are also given for position 0 alone (with `/pos0`) and for the other positions (with `/rest`).

    Means over the T−1 predictions of a window, in nats (the CE of position t is that of predicting token t+1):
        ce_clean, ce_spliced, ce_zero, ce_mean     cross-entropy of the four passes
        ce_increase                                ce_spliced − ce_clean; positive is worse
        loss_recovered_zero, loss_recovered_mean   (ce_ablated − ce_spliced) / (ce_ablated − ce_clean)
    Means over all T positions:
        kl                                         KL(clean ‖ spliced), nats
        top1_agreement                             share of positions with the same likeliest next token
        l0                                         non-zero latents per token
        mse, explained_variance                    of the reconstruction; mse is averaged over dimensions too
        cosine, norm_ratio                         means of the per-token values cos(x̂, x) and ‖x̂‖/‖x‖
        downstream_mse/<k>, downstream_ev/<k>      mse and explained variance of the residual entering block k
        alive_heldout_<N>, alive_heldout_<N>_frac  latents that fired at least once in the N tokens

    Args:
        mean_activation: the mean over *training* tokens, which replaces the activation at every position in mean ablation.
        ablations: False leaves out the two ablated passes and their metrics (for short evaluations during training).
        output_hook: the hook point that a transcoder writes. Reconstruction and ablations replace the activation there, and
            the residuals of the downstream metrics come after it. None: the same as `hook`.
        gradient: give the encoder the gradient of the loss of these labels at the activation that is written. With `data` the
            codes have seen the next token, so that the metrics leak the label. `sampled` labels are the same at every call.
            None: no gradient.
        force: evaluate a loaded SAE on another model, with another weight processing or at other hook points than its metadata name.

    A metric without a value is left out: an explained variance if the activation does not vary (at position 0, if every window
    starts with the same token), a loss recovered if ablation does not increase the loss, a norm ratio if a token's
    activation is zero, and `/rest` of predictions if T = 2.

    Raises:
        UserError: if there are no batches, a window has less than two tokens, the widths of the SAE do not fit the hook
            points, or these do not exist or are out of order.
    """
    site = Site(hook, hook if output_hook is None else output_hook, sae)
    check_site(subject, site, force=force)
    later = {_entered_block(name): name for name in later_residuals(site.write, n_layers=subject.n_layers)}
    captured = [site.read, site.write, *later.values()]
    predictions = PredictionMetrics(subject, ablate={site.write: mean_activation} if ablations else None)
    means, reconstruction = predictions.means, ReconstructionSums()
    downstream = {k: ReconstructionSums() for k in later}
    fired = torch.zeros(sae.n_latents, device=subject.device, dtype=torch.int64)
    maxima = torch.zeros(sae.n_latents, device=subject.device)
    has_zeros = torch.zeros((), device=subject.device, dtype=torch.bool)
    generator = torch.Generator(subject.device).manual_seed(0)
    n_tokens = 0

    for tokens in iterate_held_out(batches, device=subject.device):
        n_tokens += tokens.numel()
        clean, side = _clean_pass(subject, tokens, site, captured, gradient=gradient, generator=generator)
        codes = sae.encode(clean.activations[site.read].flatten(0, 1).float(), side)
        firings, n_firing = codes.count_firing()
        fired += firings
        maxima = torch.maximum(maxima, codes.largest())
        x_hat = sae.decode(codes)
        spliced = subject.spliced(clean, {site.write: replace_with(x_hat)}, capture=list(later.values()))

        predictions.add(tokens, clean, spliced)
        target = clean.activations[site.write]
        x = target.flatten(0, 1).float()
        means.add("l0", n_firing.view_as(tokens))
        means.add("cosine", F.cosine_similarity(x_hat, x, dim=-1).view_as(tokens))
        norms = x.norm(dim=-1)
        has_zeros |= (norms == 0).any()
        means.add("norm_ratio", (x_hat.norm(dim=-1) / norms).view_as(tokens))
        reconstruction.add(target, x_hat.view_as(target))
        for k, name in later.items():
            downstream[k].add(clean.activations[name], spliced.activations[name])

    results = predictions.results() | _reconstruction_results(reconstruction, downstream)
    results |= {
        name: torch.where(has_zeros, UNDEFINED, value) for name, value in results.items() if "norm_ratio" in name
    }
    dtype = sum_dtype(subject.device)
    alive = (fired > 0).sum().to(dtype)
    results |= {f"alive_heldout_{n_tokens}": alive, f"alive_heldout_{n_tokens}_frac": alive / sae.n_latents}
    densities = (fired.to(dtype) / n_tokens).float().cpu()
    return SaeEvaluation(to_numbers(results, device=subject.device), densities, n_tokens, maxima.cpu())


def _clean_pass(
    subject: Subject,
    tokens: Int[Tensor, "batch pos"],
    site: Site,
    captured: Sequence[str],
    *,
    gradient: LabelTarget | None,
    generator: torch.Generator,
) -> tuple[Clean, Float[Tensor, "tokens d_out"] | None]:
    """Run the clean pass; return it with the gradient for the encoder, or None if the encoder is given no gradient."""
    if gradient is None:
        return subject.clean(tokens, capture=captured), None
    clean, gradients = clean_with_label_gradients(
        subject, tokens, hooks=[site.write], target=gradient, generator=generator, capture=captured
    )
    return clean, gradients[site.write].flatten(0, 1).float()


def _reconstruction_results(
    reconstruction: ReconstructionSums, downstream: Mapping[int, ReconstructionSums]
) -> dict[str, Tensor]:
    """Return MSE and explained variance of the reconstruction, and of the residuals entering later blocks, by name."""
    metrics = {
        name + suffix: value for name, values in reconstruction.results().items() for suffix, value in values.items()
    }
    for k, sums in downstream.items():
        results = sums.results()
        metrics |= {f"downstream_mse/{k}{suffix}": value for suffix, value in results["mse"].items()}
        metrics |= {f"downstream_ev/{k}{suffix}": value for suffix, value in results["explained_variance"].items()}
    return metrics


def _entered_block(residual: str) -> int:
    """Return k for the residual entering block k; n_layers for the last `hook_resid_post`."""
    hook = parse_hook(residual)
    return hook.layer + (hook.kind == "resid_post")
