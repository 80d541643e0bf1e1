"""The comparison of bases that the experiments on single networks share: find, ablate and report every basis."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.basis import Basis, dictionary_basis, neuron_basis, pca_basis
from crux.degeneracy.basis_options import CompareOptions, ComparisonExperiment, LastBasis
from crux.degeneracy.comparison import AblationLoss, BasisComparison, ablate_bases, find_bases, logits_basis
from crux.degeneracy.experiments import comparison_report
from crux.degeneracy.experiments.graphs import find_graphs
from crux.degeneracy.grams import Moments, moments
from crux.degeneracy.networks.network import Network
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result


class LanguageParts(NamedTuple):
    """The inputs of a comparison that only language models have."""

    W_U: Float[Tensor, "d_vocab d"]
    """Unembedding, for the basis of the logits."""
    dictionaries: Mapping[str, Float[Tensor, "_k _d"]]
    """Decoder directions of SAEs, keyed by hook point. They form the basis `sae`, with principal components at all other hook points."""


def compare_bases(
    network: Network,
    *,
    options: ComparisonExperiment,
    found_on: Sequence[Tensor],
    loss: AblationLoss,
    language: LanguageParts | None,
    run: ActiveRun,
    last_step: int,
) -> tuple[BasisComparison, Result]:
    """Find every basis on one network and compare them; return the comparison, and its report as a result.

    Args:
        found_on: batches on which bases and edges are found.
        loss: the loss of the ablations, with its held-out batches.
        language: None if the network is not a language model.
        last_step: last step of the run's history before the comparison, from which the rows of the comparison are counted.
    """
    compare, once = options.compare, partial(compute_once, run.folder)
    moments_at = moments(network, found_on, hooks=compare.hooks)
    last = build_last_basis(compare, moments_at, language)
    bases = find_bases(network, found_on, moments_at=moments_at, options=compare, last=last, seed=run.seed, once=once)
    if language is not None and language.dictionaries:
        bases["sae"] = [
            dictionary_basis(hook, moments_at[hook], directions=language.dictionaries[hook])
            if hook in language.dictionaries
            else pca_basis(hook, moments_at[hook], threshold=compare.threshold)
            for hook in compare.hooks[:-1]
        ] + [last]

    def report_done(done: int) -> None:
        run.add_row(last_step + done, {"bases_done": float(done)})

    comparison = ablate_bases(
        network, bases, options=compare, seed=run.seed, found_on=found_on, loss=loss, once=once, report_done=report_done
    )
    covariances = {hook: moments_at[hook].covariance for hook in compare.hooks}
    graphs = find_graphs(comparison, options, seed=run.seed)
    report = comparison_report.format_tables(comparison, compare, loss=loss.name)
    return comparison, Result(
        comparison_report.collect_metrics(comparison, compare) | graphs.metrics,
        comparison_report.check_orthogonality(comparison, covariances),
        comparison_report.plot_figures(comparison, compare, loss=loss.name) | graphs.figures,
        comparison_report.collect_arrays(comparison, compare),
        f"{report}\n\n{graphs.report}" if graphs.modules else report,
    )


def build_last_basis(
    options: CompareOptions, moments_at: Mapping[str, Moments], language: LanguageParts | None
) -> Basis:
    """Return the basis at the last hook point, which all bases share."""
    hook = options.hooks[-1]
    match options.last:
        case LastBasis.pca:
            return pca_basis(hook, moments_at[hook], threshold=options.threshold)
        case LastBasis.neuron:
            return neuron_basis(hook, moments_at[hook])
        case LastBasis.logits:
            assert language is not None
            return logits_basis(hook, moments_at[hook], W_U=language.W_U, threshold=options.threshold)
