"""Comparisons of SAEs at one hook point of a subject: at an equal number of rules, at an equal steering budget, and pair by pair."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from crux.sae.architectures.sae import SAE
from crux.sae.geometry.compare import compare_dictionaries
from crux.sae.geometry.dictionary import Dictionary, read_dictionary
from crux.sae.geometry.fisher_directions import Fisher, measure_fisher
from crux.sae.reading.code_similarity import describe_code_similarity
from crux.sae.reading.conditions import DEPTH
from crux.sae.reading.controls import get_activations
from crux.sae.reading.fit_rules import SHRINKAGE
from crux.sae.reading.pruned_tree import choose_nodes, refit_nodes
from crux.sae.reading.replacements import TokenLosses, compare_losses, share_recovered
from crux.sae.reading.rewriting import measure_rewriting
from crux.sae.reading.rules import Rules
from crux.sae.reading.section import Reading, Section, no_features
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.steering_comparison import compare_steering
from crux.sae.reading.suffix_pool import MIN_COUNT
from crux.sae.reading.suffix_tree import SuffixTree
from crux.sae.reading.use_section import STEERING_KINDS, steer_latents, steering_cells
from crux.sae.reading.whole_section import LINE_DEPTH

FISHER_TOKENS, FISHER_DRAWS = 32_768, 2
"""Training tokens and draws of labels of the Fisher information by which rules are chosen."""

STEERING_COLUMNS = (
    "relative_alpha",
    "consistency",
    "mode_share",
    "lens_overlap",
    "on_target",
    "side_effect",
    "ce_increase",
)
"""Columns of the steering table in which SAEs are compared."""

N_RESAMPLES = 2000
"""Bootstrap resamples of latents."""


class RewrittenSae(NamedTuple):
    """The losses of one SAE whose codes are replaced by rules, by the total number of rules."""

    table: pd.DataFrame
    losses: Mapping[str, TokenLosses]


def measure_use_of_directions(reading: Reading) -> Fisher:
    """Return the Fisher information at the hook point that the SAEs write, by which the rules of all of them are chosen."""
    batches = list(reading.harvest.fit.batches(reading.batch, max_tokens=FISHER_TOKENS))
    return measure_fisher(
        reading.subject, hook=reading.site.write, batches=batches, n_draws=FISHER_DRAWS, seed=reading.seed
    )


def choose_rules(
    sae: SAE, codes: SparseCodes, *, totals: Sequence[int], tree: SuffixTree, fisher: Fisher
) -> dict[int, Rules]:
    """Return given total numbers of rules over all latents of an SAE: those that save the largest squared errors.

    Rules are suffixes of up to three tokens. A squared error of latent i's code counts w_iᵀ F̄ w_i, what it costs the network to second
    order, so that rules go to the latents that matter. There are fewer rules if no further one saves anything.

    Args:
        codes: of the text of the tree.
        fisher: F̄ at the hook point that the SAE writes.
    """
    rows = sae.dictionary().detach().double().cpu()
    weights = torch.einsum("id,de,ie->i", rows, fisher.matrix.double().cpu(), rows).clamp_min(0).numpy()
    options = {"weights": weights, "shrinkage": SHRINKAGE, "min_count": MIN_COUNT, "depth": DEPTH}
    return {
        total: refit_nodes(tree, choose_nodes(tree, codes, total=total, **options), codes, shrinkage=SHRINKAGE)
        for total in totals
    }


def rewrite_at_totals(
    reading: Reading, *, totals: Sequence[int], tree: SuffixTree, fisher: Fisher, max_tokens: int, with_line: bool
) -> RewrittenSae:
    """Return the losses of an SAE whose codes are predicted by given total numbers of rules (`choose_rules`).

    Args:
        tree: of the fit text.
        with_line: whether the line without a dictionary is measured, too.
    """
    harvest, site = reading.harvest, reading.site
    chosen = choose_rules(site.sae, harvest.fit.codes, totals=totals, tree=tree, fisher=fisher)
    rules = {name_total(total): some for total, some in chosen.items()}
    with_line = with_line and site.read == site.write
    rewriting = measure_rewriting(
        reading.subject, site, harvest, rules, tree=tree, mean=reading.mean_written,
        x=get_activations(harvest.fit) if with_line else None, shrinkage=SHRINKAGE, min_count=MIN_COUNT, depth=LINE_DEPTH,
        max_tokens=max_tokens, batch=reading.batch,
    )  # fmt: skip
    return RewrittenSae(pd.DataFrame(rewriting.rows), rewriting.losses)


def name_total(total: int) -> str:
    """Return the name in the tables of the codes that `total` rules predict."""
    return f"{total:,} rules"


def describe_equal_rules(readings: Mapping[str, Reading], *, totals: Sequence[int], max_tokens: int) -> Section:
    """Return what equally many rules recover of each SAE, with differences from the first SAE on the same windows.

    Columns: `R`, the share of the CE between mean ablation and the SAE that the rules recover; `R of clean`, the same share of the CE
    between mean ablation and the clean network, so that what the SAE itself loses counts, too; `CE − first`, with its standard error over
    windows.
    """
    first = next(iter(readings))
    fisher = measure_use_of_directions(readings[first])
    tree = readings[first].fit_text.tree  # all have the same text
    rows, metrics = [], {}
    reference: Mapping[str, TokenLosses] = {}
    for name, reading in readings.items():
        rewritten = rewrite_at_totals(
            reading, totals=totals, tree=tree, fisher=fisher, max_tokens=max_tokens, with_line=name == first
        )  # fmt: skip
        reference = reference or rewritten.losses
        for record in rewritten.table.to_dict("records"):
            kind = str(record["replacement"])
            if name != first and kind in ("clean", "zero", "mean"):
                continue
            of_clean = share_recovered(
                rewritten.losses[kind], none=rewritten.losses["mean"], all_of_it=rewritten.losses["clean"]
            )
            difference = compare_losses(rewritten.losses[kind], reference[kind])
            of_sae = kind == "sae" or kind in map(name_total, totals)
            rows.append({
                "SAE": name if of_sae else "–", "codes": kind, "rules": record["n_rules"],
                "stored": max(record["stored"], 0), "CE": record["ce"],
                "R": record["recovered"], "±": record["recovered_error"], "R of clean": of_clean.value,
                "CE − first": difference.value if of_sae else np.nan,
                "± of the difference": difference.standard_error if of_sae else np.nan,
            })  # fmt: skip
            if of_sae and kind != "sae":
                metrics[f"{name}/recovered@{record['n_rules']}"] = float(record["recovered"])
                metrics[f"{name}/recovered_of_clean@{record['n_rules']}"] = of_clean.value
    return Section(no_features(), {"equal_rules": pd.DataFrame(rows)}, _finite(metrics))


def describe_equal_steering(readings: Mapping[str, Reading], *, n_latents: int, budget: float) -> Section:
    """Return the effects of steering with the latents of each SAE at one KL budget on the same contexts, and differences from the first.

    Each SAE's controls stand for its latents, and differences are also those of latents minus controls.
    """
    tables: dict[str, pd.DataFrame] = {}
    for name, reading in readings.items():
        _, table = steer_latents(reading, n_latents=n_latents, budget=budget)
        if table is not None:
            tables[name] = table
    if not tables:
        return Section(no_features(), {}, {})
    cells = {name: steering_cells(table, budget=budget) for name, table in tables.items()}
    shown = {"steering": pd.concat(cells, names=["SAE", "row"]).reset_index("SAE").reset_index(drop=True)}
    first, *others = tables
    rows = [
        {"SAE": name, "minus": first, **difference._asdict()}
        for name in others
        for difference in compare_steering(
            tables[name], tables[first], columns=STEERING_COLUMNS, controls=list(STEERING_KINDS[:1]),
            n_resamples=N_RESAMPLES, seed=readings[first].seed,
        )
    ]  # fmt: skip
    if rows:
        shown["steering_differences"] = pd.DataFrame(rows)
    return Section(no_features(), shown, {})


def describe_pairs(readings: Mapping[str, Reading]) -> Section:
    """Return how alike the dictionaries and the codes of each two SAEs are, each number with its chance levels."""
    dictionaries = {
        name: read_dictionary(reading.site.sae, alive=reading.harvest.held_out.codes.firings() > 0)
        for name, reading in readings.items()
    }
    pairs = {
        (a, b): compare_pair(readings[a], readings[b], dictionaries[a], dictionaries[b])
        for a, b in combinations(readings, 2)
    }
    measures = list(next(iter(pairs.values()), {}))
    table = pd.DataFrame(
        {"measure": measures} | {f"{a} and {b}": [found[m] for m in measures] for (a, b), found in pairs.items()}
    )
    metrics = {
        f"{a}_{b}/{name}": found[name]
        for (a, b), found in pairs.items()
        for name in ("matched_cos", "matched_code_correlation")
    }
    return Section(no_features(), {"pairs": table}, _finite(metrics))


def compare_pair(a: Reading, b: Reading, dictionary_a: Dictionary, dictionary_b: Dictionary) -> dict[str, float]:
    """Return all numbers of a pair of SAEs: of their dictionaries, and of their codes on the held-out text."""
    covariance = torch.from_numpy(a.moments.covariance)
    pair = compare_dictionaries(dictionary_a, dictionary_b, covariance=covariance, seed=a.seed)
    matched = dictionary_a.latents[pair.matching.rows], dictionary_b.latents[pair.matching.columns]
    return pair.numbers() | describe_code_similarity(a.harvest.held_out, b.harvest.held_out, matched=matched)


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if np.isfinite(value)}
