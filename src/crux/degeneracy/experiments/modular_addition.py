"""The modular-addition transformer: edges and directions needed in the principal components and in the interaction basis."""

from torch import Tensor

from crux.config.markdown import markdown_table
from crux.config.schema import Config
from crux.degeneracy.basis import neurons
from crux.degeneracy.experiments.compare_bases import compared, modularity_of, options, plan_of
from crux.degeneracy.experiments.trained_addition import last_row, trained_modular_addition
from crux.degeneracy.networks.modular_addition import Pairs
from crux.runs.experiment import AddRow
from crux.runs.result import Check, Result
from crux.runs.run_folder import RunFolder

__all__ = ["last_row", "result"]

PUBLISHED = {
    0: ((167, 114, 682), (133, 82, 633)),
    1: ((76, 53, 734), (80, 75, 699)),
    2: ((99, 71, 598), (71, 71, 610)),
    3: ((115, 71, 547), (58, 60, 535)),
    4: ((130, 117, 752), (91, 82, 694)),
}
"""Edges needed within 0.001 of the accuracy, principal components and local interaction basis, by seed: rib's files (reference 3.3)."""


def result(config: Config, job: RunFolder, add_row: AddRow) -> Result:
    """Bases and edges on the training pairs; a held-out pair counts as 1 where it is wrong."""
    network, tokens = trained_modular_addition(config, job, add_row)
    chain = network.at_last_position().double().requires_grad_(False)
    plan, wanted = plan_of(config), options(config)

    def wrong(pairs: Tensor, logits: Tensor) -> Tensor:
        return (logits.argmax(-1) != Pairs.sums(pairs)).double()

    start = max((int(row["step"]) for row in job.history()), default=0)
    found, kept = compared(
        chain,
        plan=plan,
        found_on=list(tokens.train[: wanted.samples].split(wanted.batch)),
        judged_on=list(tokens.test[: wanted.judged].split(wanted.batch)),
        end=chain.output,
        loss=wrong,
        loss_name="share of held-out pairs that are wrong",
        last=neurons,
        dictionaries={},
        modularity=modularity_of(config),
        add_row=lambda step, row: add_row(start + step, row),
    )
    checks = [*kept.checks, Check("share of held-out pairs that are wrong", found.clean, 0, 0.001)]
    ours = {name: found.edges_needed(name) for name in ("pca", "local") if name in found.edge_curves}
    if None not in ours.values() and len(ours) == 2:
        ratio = (ours["local"] or 0) / (ours["pca"] or 1)
        checks.append(
            Check("edges needed, local basis / principal components (published: 0.87 to 0.99)", ratio, 0.7, 1.1)
        )
    return kept._replace(checks=checks, report=f"{kept.report}\n\n{published()}")


def published() -> str:
    """rib's counts as a table, their sums behind."""
    rows = [
        [f"seed {seed}", *(f"{' / '.join(map(str, each))} = {sum(each)}" for each in counts)]
        for seed, counts in PUBLISHED.items()
    ]
    rows.append(["directions, seed 0", "15 / 17 / 9", "15 / 17 / 9"])
    return markdown_table(["published, edges by layer", "principal components", "local interaction basis"], rows)
