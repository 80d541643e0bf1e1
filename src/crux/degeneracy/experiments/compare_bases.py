"""The part that the experiments on single networks share: every basis, ablated, and shown."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from crux.config.schema import Config
from crux.degeneracy.ablation import Loss
from crux.degeneracy.basis import Basis, dictionary, principal_components
from crux.degeneracy.compared import Compared, Plan, compare, every_basis
from crux.degeneracy.experiments import shown
from crux.degeneracy.experiments.graphs import Graphs, graphs
from crux.degeneracy.grams import Moments, moments
from crux.degeneracy.networks.network import Network
from crux.degeneracy.options import Compare, Modularity
from crux.runs.experiment import AddRow
from crux.runs.result import Result


def options(config: Config) -> Compare:
    """The configuration's part."""
    assert config.interaction_basis is not None
    assert config.interaction_basis.compare is not None
    return config.interaction_basis.compare


def modularity_of(config: Config) -> Modularity | None:
    """How modules are looked for, where the configuration says so."""
    assert config.interaction_basis is not None
    return config.interaction_basis.modularity


def plan_of(config: Config) -> Plan:
    """The numbers of the comparison."""
    of = options(config)
    return Plan(
        bases=of.bases,
        hooks=of.hooks,
        ahead=of.ahead,
        probes=of.probes,
        threshold=of.threshold,
        points=of.points,
        within=of.within,
        directions=of.directions,
        edge_samples=of.edge_samples,
        edge_ablation=of.edge_ablation,
        seed=config.seed,
    )


def compared(
    network: Network,
    *,
    plan: Plan,
    found_on: Sequence[Tensor],
    judged_on: Sequence[Tensor],
    end: str,
    loss: Loss,
    loss_name: str,
    last: Callable[[str, Moments], Basis] | None,
    dictionaries: Mapping[str, Tensor],
    modularity: Modularity | None,
    add_row: AddRow,
) -> tuple[Compared, Result]:
    """Every basis on one network, and what is left of it for people.

    Args:
        end: hook point that the loss reads.
        loss_name: with its unit.
        last: the basis at the last hook point; its principal components where not given.
        dictionaries: decoder directions of SAEs, by their hook points: a basis `sae`, at other hook points principal components.
        modularity: how modules are looked for; None: they are not.
    """

    def components(hook: str, at: Moments) -> Basis:
        return principal_components(hook, at, threshold=plan.threshold)

    at = moments(network, found_on, hooks=plan.hooks)
    bases = every_basis(network, found_on, at=at, plan=plan, last=last or components)
    if dictionaries:
        bases["sae"] = [
            dictionary(basis.hook, at[basis.hook], directions=dictionaries[basis.hook])
            if basis.hook in dictionaries
            else basis
            for basis in (
                *(components(hook, at[hook]) for hook in plan.hooks[:-1]),
                next(iter(bases.values()))[-1],
            )
        ]
    done: list[str] = []

    def progress(name: str) -> None:
        done.append(name)
        add_row(len(done), {"bases_done": float(len(done))})

    found = compare(
        network, bases, plan=plan, found_on=found_on, judged_on=judged_on, end=end, loss=loss, progress=progress
    )
    covariances = {hook: at[hook].covariance for hook in plan.hooks}
    drawn = graphs(found, plan, modularity) if modularity is not None else Graphs({}, {})
    report = shown.report(found, plan, loss=loss_name)
    return found, Result(
        shown.metrics(found, plan) | drawn.metrics,
        shown.orthogonality(found, covariances),
        shown.figures(found, plan, loss=loss_name) | drawn.figures,
        shown.arrays(found, plan),
        f"{report}\n\n{drawn.report}" if drawn.modules else report,
    )
