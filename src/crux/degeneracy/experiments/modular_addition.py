"""The modular-addition transformer: edges and directions needed in the principal components and in the interaction basis."""

from torch import Tensor

from crux.config.markdown import markdown_table
from crux.degeneracy.comparison import AblationLoss
from crux.degeneracy.experiments.compare_bases import compare_bases
from crux.degeneracy.experiments.trained_addition import last_addition_row, load_addition_network, train_in_run
from crux.degeneracy.networks.modular_addition import Pairs
from crux.degeneracy.options import AdditionBasesJob
from crux.runs.experiment import Experiment
from crux.runs.life_cycle import ActiveRun
from crux.runs.result import Check, Result

PUBLISHED = {
    0: ((167, 114, 682), (133, 82, 633)),
    1: ((76, 53, 734), (80, 75, 699)),
    2: ((99, 71, 598), (71, 71, 610)),
    3: ((115, 71, 547), (58, 60, 535)),
    4: ((130, 117, 752), (91, 82, 694)),
}
"""Edges needed within 0.001 of the accuracy by principal components and by the local interaction basis, per seed
(docs/reference/interaction_basis.md §3, from rib's files)."""


def result(job: AdditionBasesJob, run: ActiveRun) -> Result:
    """Find bases and edges on the training pairs; a held-out pair counts as 1 if it is wrong."""
    options = job.interaction_basis
    network, tokens = (
        load_addition_network(job.model.path)
        if job.model.path is not None
        else train_in_run(
            options.addition,
            optimizer=job.optimizer,
            trainer=job.trainer,
            callbacks=job.callbacks,
            run=run,
        )
    )
    chain = network.last_position_chain().double().requires_grad_(False)
    of = options.compare

    def wrong(pairs: Tensor, logits: Tensor) -> Tensor:
        return (logits.argmax(-1) != Pairs.sums(pairs)).double()

    judged = list(tokens.test[: of.judged].split(of.batch))
    found, kept = compare_bases(
        chain,
        options=options,
        found_on=list(tokens.train[: of.samples].split(of.batch)),
        loss=AblationLoss("share of held-out pairs that are wrong", wrong, chain.output, judged),
        language=None,
        run=run,
        first_row=max((int(row["step"]) for row in run.folder.read_history() if "val/accuracy" in row), default=0),
    )
    checks = [*kept.checks, Check("share of held-out pairs that are wrong", found.clean, 0, 0.001)]
    ours = {name: found.total_edges_needed(name) for name in ("pca", "local") if name in found.edge_curves}
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


EXPERIMENT = Experiment(AdditionBasesJob, result, last_addition_row)
