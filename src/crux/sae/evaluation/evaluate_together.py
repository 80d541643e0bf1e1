"""The judgement of several SAEs spliced into one pass, where each has to live with what the others leave of the network."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.evaluation.prediction_metrics import PredictionMetrics, iterate_held_out, to_numbers
from crux.sae.splicing import check_site, splice_sites
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
) -> dict[str, float]:
    """Judges SAEs that stand in the network at once, each encoding what the earlier ones have left it.

    ce_clean, ce_spliced, ce_zero, ce_mean, ce_increase, loss_recovered_zero, loss_recovered_mean, kl, top1_agreement and l0,
    with `/pos0` and `/rest`: averaged, and left out where they have no value, as by `evaluate_sae`. l0 is the sum over the
    SAEs; zeros and means are put at every hook point that is written.

    Args:
        means: by hook point that is written, the mean activation over training tokens; others are not looked at.
        ablations: False leaves out the two ablated passes with what follows from them.

    Raises:
        UserError: as `evaluate_sae` does, and where two SAEs write at one hook point.
    """
    for site in sites:
        check_site(subject, site)
    written = [site.write for site in sites]
    captured = {sort_hooks(written)[0], sort_hooks([*written, *(site.read for site in sites)])[0]}
    predictions = PredictionMetrics(subject, ablate={hook: means[hook] for hook in written} if ablations else None)
    for tokens in iterate_held_out(batches, device=subject.device):
        clean = subject.clean(tokens, capture=captured)
        splice, passed = splice_sites(sites, sides=None)
        predictions.add(tokens, clean, subject.spliced(clean, splice))
        l0 = torch.stack([(each.codes.c != 0).sum(-1) for each in passed]).sum(0)
        predictions.means.add("l0", l0.view_as(tokens))
    return to_numbers(predictions.results(), device=subject.device)
