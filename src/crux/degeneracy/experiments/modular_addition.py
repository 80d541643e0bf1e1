"""Experiment: comparison of bases on the modular-addition transformer, next to rib's published numbers of edges."""

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

PUBLISHED_EDGES = {
    0: ((167, 114, 682), (133, 82, 633)),
    1: ((76, 53, 734), (80, 75, 699)),
    2: ((99, 71, 598), (71, 71, 610)),
    3: ((115, 71, 547), (58, 60, 535)),
    4: ((130, 117, 752), (91, 82, 694)),
}
"""Edges needed to stay within 0.001 of the accuracy: seed → (by principal components, by the local interaction basis), each for the
three layers (docs/reference/interaction_basis.md §3, from rib's files)."""


def result(job: AdditionBasesJob, run: ActiveRun) -> Result:
    """Find bases and edges on the training pairs. The ablation loss is the share of held-out pairs that are wrong."""
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
    compare = options.compare

    def wrong(pairs: Tensor, logits: Tensor) -> Tensor:
        return (logits.argmax(-1) != Pairs.sums(pairs)).double()

    held_out = list(tokens.test[: compare.judged].split(compare.batch))
    comparison, report = compare_bases(
        chain,
        options=options,
        found_on=list(tokens.train[: compare.samples].split(compare.batch)),
        loss=AblationLoss("share of held-out pairs that are wrong", wrong, chain.output, held_out),
        language=None,
        run=run,
        last_step=max((int(row["step"]) for row in run.folder.read_history() if "val/accuracy" in row), default=0),
    )
    checks = [*report.checks, Check("share of held-out pairs that are wrong", comparison.clean, 0, 0.001)]
    needed = {name: comparison.total_edges_needed(name) for name in ("pca", "local") if name in comparison.edge_curves}
    if None not in needed.values() and len(needed) == 2:
        ratio = (needed["local"] or 0) / (needed["pca"] or 1)
        checks.append(
            Check("edges needed, local basis / principal components (published: 0.87 to 0.99)", ratio, 0.7, 1.1)
        )
    return report._replace(checks=checks, report=f"{report.report}\n\n{format_published_table()}")


def format_published_table() -> str:
    """Return rib's published numbers of edges per layer, with their sums, as a table."""
    rows = [
        [f"seed {seed}", *(f"{' / '.join(map(str, by_layer))} = {sum(by_layer)}" for by_layer in counts)]
        for seed, counts in PUBLISHED_EDGES.items()
    ]
    rows.append(["directions, seed 0", "15 / 17 / 9", "15 / 17 / 9"])
    return markdown_table(["published, edges by layer", "principal components", "local interaction basis"], rows)


EXPERIMENT = Experiment(AdditionBasesJob, result, last_addition_row)
