"""What the experiments on single networks share: every basis, ablated, and reported."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from crux.degeneracy.basis import Basis, dictionary_basis, neuron_basis, pca_basis
from crux.degeneracy.basis_options import CompareOptions, ComparisonExperiment, LastBasis
from crux.degeneracy.comparison import AblationLoss, BasisComparison, ablate_bases, find_bases, logits_basis
from crux.degeneracy.experiments import comparison_report
from crux.degeneracy.experiments.graphs import graphs
from crux.degeneracy.grams import Moments, moments
from crux.degeneracy.networks.network import Network
from crux.runs.intermediate import compute_once
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Result


class LanguageParts(NamedTuple):
    """What only a language model has."""

    W_U: Float[Tensor, "d_vocab d"]
    dictionaries: Mapping[str, Float[Tensor, "_k _d"]]
    """Decoder directions of SAEs, by their hook points: they are a basis `sae`, with principal components at other hook points."""


def compare_bases(
    network: Network,
    *,
    options: ComparisonExperiment,
    found_on: Sequence[Tensor],
    loss: AblationLoss,
    language: LanguageParts | None,
    run: ActiveRun,
    first_row: int,
) -> tuple[BasisComparison, Result]:
    """Return every basis on one network, and what a comparison of them leaves for people.

    Args:
        found_on: batches that bases and edges are found on.
        first_row: step of the history before the first basis is done.
    """
    of, once = options.compare, partial(compute_once, run.folder)
    at = moments(network, found_on, hooks=of.hooks)
    last = last_basis(of, at, language)
    bases = find_bases(network, found_on, at=at, options=of, last=last, seed=run.seed, once=once)
    if language is not None and language.dictionaries:
        bases["sae"] = [
            dictionary_basis(hook, at[hook], directions=language.dictionaries[hook])
            if hook in language.dictionaries
            else pca_basis(hook, at[hook], threshold=of.threshold)
            for hook in of.hooks[:-1]
        ] + [last]

    def report_done(done: int) -> None:
        run.add_row(first_row + done, {"bases_done": float(done)})

    found = ablate_bases(
        network, bases, options=of, seed=run.seed, found_on=found_on, loss=loss, once=once, report_done=report_done
    )
    covariances = {hook: at[hook].covariance for hook in of.hooks}
    drawn = graphs(found, options, seed=run.seed)
    report = comparison_report.report(found, of, loss=loss.name)
    return found, Result(
        comparison_report.metrics(found, of) | drawn.metrics,
        comparison_report.orthogonality(found, covariances),
        comparison_report.figures(found, of, loss=loss.name) | drawn.figures,
        comparison_report.arrays(found, of),
        f"{report}\n\n{drawn.report}" if drawn.modules else report,
    )


def last_basis(options: CompareOptions, at: Mapping[str, Moments], language: LanguageParts | None) -> Basis:
    """Return the basis at the last hook point, which all share."""
    hook = options.hooks[-1]
    match options.last:
        case LastBasis.pca:
            return pca_basis(hook, at[hook], threshold=options.threshold)
        case LastBasis.neuron:
            return neuron_basis(hook, at[hook])
        case LastBasis.logits:
            assert language is not None
            return logits_basis(hook, at[hook], W_U=language.W_U, threshold=options.threshold)
