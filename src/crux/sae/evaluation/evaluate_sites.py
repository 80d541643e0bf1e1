"""The evaluation of all SAEs of a run: each SAE separately, and all together.

Gradient SAEs are evaluated a second time with latents that are selected with the gradient, as in training.
"""

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
"""Prefix of metrics with latents that are selected by the gradient of a label loss. Such a selection has seen the label."""


class SitesEvaluation(NamedTuple):
    """The evaluation of all SAEs of a run."""

    metrics: dict[str, float]
    """Metrics by name, without `final/`. For one SAE, those of `evaluate_sae`. For several SAEs, those of `evaluate_together`, and
    those of `evaluate_sae` for each SAE with its hook point as a prefix."""
    evaluations: list[SaeEvaluation]
    """One evaluation per SAE."""


def evaluate_sites(
    subject: Subject,
    sites: Sequence[Site],
    *,
    batches: Sequence[Int[Tensor, "_batch _pos"]] | Iterable[Int[Tensor, "_batch _pos"]],
    means: Mapping[str, Float[Tensor, "_d"]],
    gradient: LabelTarget | None,
    short: bool,
    force: bool = False,
) -> SitesEvaluation:
    """Evaluate the folded SAEs, which are functions of a single token's activation, as they would be used.

    Args:
        means: mean activation over training tokens, by hook point.
        gradient: the labels whose gradient the SAEs use in training; None: they use no gradient.
        short: leave out the ablated passes and the second evaluation with gradients.
        force: as in `evaluate_sae`.
    """
    batches = list(batches)
    folded = [Site(site.read, site.write, site.sae.fold()) for site in sites]
    evaluations: list[SaeEvaluation] = []
    metrics: dict[str, float] = {}
    for site, unfolded in zip(folded, sites, strict=True):
        prefix = "" if len(sites) == 1 else f"{site.write}/"
        mean, output = means[site.write], site.write if site.write != site.read else None
        evaluations.append(
            evaluate_sae(
                subject, site.sae, hook=site.read, output_hook=output, batches=batches, mean_activation=mean,
                ablations=not short, force=force,
            )
        )  # fmt: skip
        metrics |= {prefix + name: value for name, value in evaluations[-1].metrics.items()}
        if gradient is not None and not short:
            with_gradient = evaluate_sae(
                subject, unfolded.sae, hook=site.read, output_hook=output, batches=batches, mean_activation=mean,
                gradient=gradient, force=force,
            )  # fmt: skip
            metrics |= {f"{WITH_GRADIENT}/{prefix}{name}": value for name, value in with_gradient.metrics.items()}
    if len(sites) > 1:
        metrics |= evaluate_together(subject, folded, batches=batches, means=means, ablations=not short, force=force)
    return SitesEvaluation(metrics, evaluations)
