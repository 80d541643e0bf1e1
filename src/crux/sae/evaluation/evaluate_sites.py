"""Evaluates the SAEs of a run: each by itself, also with latents chosen by the gradient if it looks at one, and all together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from crux.sae.architectures.site import Site
from crux.sae.evaluation.evaluate_sae import SaeEvaluation, evaluate_sae
from crux.sae.evaluation.evaluate_together import evaluate_together
from crux.sae.losses.label import LabelTarget
from crux.subjects.subject import Subject

WITH_GRADIENT = "with_gradient"
"""Before the names of what is measured with latents chosen by the label's gradient: such a choice has seen the label."""


class SitesEvaluation(NamedTuple):
    """How good a run's SAEs are."""

    metrics: dict[str, float]
    """Flat names, without `final/`. One SAE: those of `evaluate`. Several: those of `evaluate_together`, and each SAE's own
    behind the name of its hook point."""
    evaluations: list[SaeEvaluation]
    """One an SAE."""


def evaluate_sites(
    subject: Subject,
    sites: Sequence[Site],
    *,
    batches: Sequence[Int[Tensor, "_batch _pos"]] | Iterable[Int[Tensor, "_batch _pos"]],
    means: Mapping[str, Float[Tensor, "_d"]],
    gradient: LabelTarget | None,
    short: bool,
) -> SitesEvaluation:
    """Evaluate the folded SAEs: functions of one token's activation, as they would be used.

    Args:
        means: mean activation by hook point, over training tokens.
        gradient: the labels whose gradient the SAEs look at in training; None: they look at none.
        short: leave the ablated passes out, and the second evaluation with gradients.
    """
    batches = list(batches)
    folded = [Site(site.read, site.write, site.sae.fold()) for site in sites]
    evaluations: list[SaeEvaluation] = []
    metrics: dict[str, float] = {}
    for site, raw in zip(folded, sites, strict=True):
        prefix = "" if len(sites) == 1 else f"{site.write}/"
        mean, output = means[site.write], site.write if site.write != site.read else None
        evaluations.append(
            evaluate_sae(
                subject, site.sae, hook=site.read, output_hook=output, batches=batches, mean_activation=mean,
                ablations=not short,
            )
        )  # fmt: skip
        metrics |= {prefix + name: value for name, value in evaluations[-1].metrics.items()}
        if gradient is not None and not short:
            seen = evaluate_sae(
                subject, raw.sae, hook=site.read, output_hook=output, batches=batches, mean_activation=mean,
                gradient=gradient,
            )  # fmt: skip
            metrics |= {f"{WITH_GRADIENT}/{prefix}{name}": value for name, value in seen.metrics.items()}
    if len(sites) > 1:
        metrics |= evaluate_together(subject, folded, batches=batches, means=means, ablations=not short)
    return SitesEvaluation(metrics, evaluations)
