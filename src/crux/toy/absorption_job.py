"""Run `experiment=toy/absorption`: do SAEs on features in a hierarchy absorb the parents, and do narrow ones mix what occurs together?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from crux.config.markdown import markdown_table
from crux.runs.experiment import no_last_row, prepare_experiment
from crux.runs.life_cycle import ActiveRun, PreparedJob, run_job
from crux.runs.result import Check, Result, finite_or_none
from crux.runs.run_folder import RunFolder
from crux.sae.architectures.relu import ReluSAE
from crux.sae.reading.absorption import measure_hedging
from crux.toy.absorption_options import AbsorptionJob, PlantedHierarchy
from crux.toy.figures.absorption import plot_absorption
from crux.toy.hierarchy import Hierarchy, make_hierarchy, measure_hierarchy_absorption, train_on_hierarchy

KINDS = {"hierarchy": True, "independent": False}
"""Features on which SAEs are trained → whether the child implies its parent."""

MIN_CORRELATION = 0.3
"""Features with a larger correlation occur together: a parent and its child."""

MIN_DIFFERENCE = 0.05
"""Least difference between SAEs with and without the hierarchy that counts."""

MEASURED = ("absorbed", "missed", "missed_without_child", "cosine", "hedging")


class Trained(NamedTuple):
    """The measures of two SAEs of one seed: a wide one, with as many latents as features, and a narrow one with half as many."""

    kind: str
    """`hierarchy` or `independent`."""
    sparsity: float
    seed: int
    absorbed: float
    """Share of the samples with a child on which it has absorbed its parent, mean over pairs; see `Absorption`."""
    missed: float
    missed_without_child: float
    cosine: float
    hedging: float
    """Of the narrow SAE: how much of the partner is mixed into a latent, |`Hedging.other_cosine`|, mean over latents."""


def run(config: AbsorptionJob, *, folder: Path | None) -> RunFolder:
    """Run the experiment.

    Args:
        folder: the run folder, if a sweep has chosen one; None: create a new one.
    """

    def compute(active: ActiveRun) -> Result:
        options = config.hierarchy
        rows = [
            train_pair(options, kind=kind, sparsity=sparsity, seed=config.seed + seed)
            for sparsity in options.sparsities
            for kind in KINDS
            for seed in range(options.seeds)
        ]
        return absorption_result(rows, sparsities=options.sparsities)

    def prepare() -> PreparedJob:
        return prepare_experiment(config, compute=compute, last_row=no_last_row, params={})

    return run_job(config, folder=folder, prepare=prepare)


def train_pair(options: PlantedHierarchy, *, kind: str, sparsity: float, seed: int) -> Trained:
    """Train two SAEs from random weights, and measure both on fresh samples of the hierarchy.

    SAEs that were trained on independent features are measured on the hierarchy too: they are the control, which has learned the same
    features at the same densities without a reason to absorb.
    """
    hierarchy = make_hierarchy(
        n_pairs=options.pairs, parent_density=options.parent_density, child_share=options.child_share
    )
    trained_on = hierarchy._replace(implied=KINDS[kind])
    wide, narrow = (
        train_on_hierarchy(
            trained_on, make_sae(hierarchy, n_latents=n_latents, seed=seed), sparsity=sparsity, steps=options.steps,
            batch=options.batch, lr=options.lr, seed=seed,
        )
        for n_latents in (2 * options.pairs, options.pairs)
    )  # fmt: skip
    found = measure_hierarchy_absorption(hierarchy, wide, n=options.samples, seed=seed + 1)
    _, x = hierarchy.draw(options.samples, torch.Generator().manual_seed(seed + 2))
    mixed = measure_hedging(
        x.numpy() @ hierarchy.directions.numpy().T, directions=hierarchy.directions.numpy(),
        dictionary=narrow.dictionary().detach().numpy(), min_correlation=MIN_CORRELATION,
    )  # fmt: skip
    means = [float(np.mean([getattr(pair, name) for pair in found])) for name in MEASURED[:-1]]
    return Trained(kind, sparsity, seed, *means, hedging=float(np.mean([abs(h.other_cosine) for h in mixed])))


def make_sae(hierarchy: Hierarchy, *, n_latents: int, seed: int) -> ReluSAE:
    """Return a ReLU SAE with random weights."""
    return ReluSAE(
        d_model=hierarchy.directions.shape[1], n_latents=n_latents, init="paper", init_norm=1.0, subtract_b_dec=False,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


class Spread(NamedTuple):
    """A mean over seeds and the standard deviation; NaN if one seed has no value."""

    mean: float
    deviation: float


def absorption_result(rows: Sequence[Trained], *, sparsities: Sequence[float]) -> Result:
    """Return means and standard deviations over seeds, and whether the hierarchy makes SAEs absorb at the largest sparsity."""
    cells = {
        (kind, sparsity): [r for r in rows if (r.kind, r.sparsity) == (kind, sparsity)]
        for sparsity in sparsities
        for kind in KINDS
    }
    spreads = {key: {name: spread(found, name) for name in MEASURED} for key, found in cells.items()}
    metrics = {
        f"{name}/{kind}/{sparsity:g}": finite_or_none(found[name].mean)
        for (kind, sparsity), found in spreads.items()
        for name in MEASURED
    }
    figures = {
        name: plot_absorption(
            sparsities,
            {kind: [spreads[kind, sparsity][name] for sparsity in sparsities] for kind in KINDS},
            quantity=label,
        )
        for name, label in (("absorbed", "share absorbed"), ("hedging", "cosine with the partner"))
    }
    columns = {name: [float(getattr(row, name)) for row in rows] for name in ("sparsity", "seed", *MEASURED)}
    columns["implied"] = [float(KINDS[row.kind]) for row in rows]
    table = markdown_table(
        ["trained on", "sparsity", *(name.replace("_", " ") for name in MEASURED)],
        [
            [kind, f"{sparsity:g}", *(f"{found[name].mean:.3f} ± {found[name].deviation:.3f}" for name in MEASURED)]
            for (kind, sparsity), found in spreads.items()
        ],
    )
    checks = [compare_kinds(cells, name, sparsity=max(sparsities)) for name in ("absorbed", "hedging")]
    return Result(
        metrics, checks, figures, {n: torch.tensor(v, dtype=torch.float64) for n, v in columns.items()}, REPORT + table
    )


def spread(rows: Sequence[Trained], name: str) -> Spread:
    """Return the mean and the standard deviation of one number over seeds."""
    values = np.array([getattr(row, name) for row in rows])
    return Spread(float(values.mean()), float(values.std(ddof=1)))


def compare_kinds(cells: Mapping[tuple[str, float], Sequence[Trained]], name: str, *, sparsity: float) -> Check:
    """Return the check that absorption or hedging is larger with the hierarchy than without.

    It must be so by `MIN_DIFFERENCE`, and by two standard errors over seeds.
    """
    with_it, without = (spread(cells[kind, sparsity], name) for kind in KINDS)
    n_seeds = len(cells["hierarchy", sparsity])
    error = ((with_it.deviation**2 + without.deviation**2) / n_seeds) ** 0.5
    what = f"{name}: hierarchy − independent, λ = {sparsity:g}"
    return Check(what, with_it.mean - without.mean, max(2 * error, MIN_DIFFERENCE), 1.0)


REPORT = (
    "Means ± standard deviations over seeds. Every SAE is measured on samples of the hierarchy; those trained on independent features are "
    "the control. absorbed: share of the samples with a child on which the parent's latent is silent and the child's latent contains the "
    "parent; missed: on which nothing replaces it; missed without child: what is missed where the child is off; cosine: of the child's "
    "latent with the parent; hedging: how much of the partner an SAE with half as many latents mixes into a latent.\n\n"
)
