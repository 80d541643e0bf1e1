"""The evaluation of several SAEs in one spliced pass, in which each reads what the earlier ones have changed."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.evaluation.prediction_metrics import PredictionMetrics, iterate_held_out, to_numbers
from crux.sae.splicing import build_joint_splice, check_site
from crux.subjects.hooks import sort_hooks
from crux.subjects.subject import Subject


@torch.no_grad()
def evaluate_together(
    subject: Subject,
    sites: Sequence[Site],
    *,
    batches: Iterable[Int[Tensor, "_batch _pos"]],
    means: Mapping[str, Float[Tensor, "_d"]],
    ablations: bool = True,
    force: bool = False,
) -> dict[str, float]:
    """Evaluate several SAEs that are spliced into the network at once.

    The metrics are ce_clean, ce_spliced, ce_zero, ce_mean, ce_increase, loss_recovered_zero, loss_recovered_mean, kl,
    top1_agreement and l0, also with `/pos0` and `/rest`. They are defined as in `evaluate_sae`, but l0 is the sum over the SAEs,
    and the ablations replace the activation at every hook point that is written.

    Args:
        means: mean activation over training tokens, by hook point written; other hook points are ignored.
        ablations: False leaves out the two ablated passes and their metrics.
        force: as in `evaluate_sae`.

    Raises:
        UserError: as `evaluate_sae`, and if two SAEs write at the same hook point.
    """
    for site in sites:
        check_site(subject, site, force=force)
    written = [site.write for site in sites]
    # the clean activations that are used: for mean ablation at the first hook written, for the spliced pass at the first of all
    captured = {sort_hooks(written)[0], sort_hooks([*written, *(site.read for site in sites)])[0]}
    predictions = PredictionMetrics(subject, ablate={hook: means[hook] for hook in written} if ablations else None)
    for tokens in iterate_held_out(batches, device=subject.device):
        clean = subject.clean(tokens, capture=captured)
        splice, passed = build_joint_splice(sites, sides=None)
        predictions.add(tokens, clean, subject.spliced(clean, splice))
        l0 = torch.stack([sae_pass.codes.count_firing()[1] for sae_pass in passed]).sum(0)
        predictions.means.add("l0", l0.view_as(tokens))
    return to_numbers(predictions.results(), device=subject.device)
