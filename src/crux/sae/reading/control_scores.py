"""The scores of explanations of an SAE's latents next to those of its controls, which have been explained in the same way."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from crux.sae.reading.controls import Control
from crux.sae.reading.fit_rules import SHRINKAGE, fit_rule_lists
from crux.sae.reading.fit_text import FitText
from crux.sae.reading.harvest import Harvest
from crux.sae.reading.percentiles import ControlComparison, compare_pairs, percentiles_at_density
from crux.sae.reading.rule_scores import RuleScores, score_rules
from crux.sae.reading.rules import Rules, first_latents
from crux.sae.reading.sparse_codes import join_codes
from crux.sae.reading.whole_tree import TreeScores, score_whole_tree

WITHOUT_LIMIT = 0
"""Stands for the unpruned tree in place of a number of rules."""

SMALL = 0.05
"""Difference of two mean correlations below which they are reported as not different."""

N_NEAREST = 20
"""Number of controls of similar density among which the percentile of a latent is taken."""


class DictionaryScores(NamedTuple):
    """Scores of the explanations of all latents of one dictionary."""

    rules: RuleScores
    tree: TreeScores

    def by_size(self) -> dict[tuple[str, int], Float[np.ndarray, "n_latents"]]:
        """Return `rho`, `ap` and `detection` by their names and numbers of rules, and `rho` of the unpruned tree."""
        values = {
            (name, size): getattr(self.rules, name)[row]
            for name in ("rho", "ap", "detection")
            for row, size in enumerate(self.rules.sizes)
        }
        return values | {("rho", WITHOUT_LIMIT): self.tree.ceiling_rho}


class ControlRow(NamedTuple):
    """One score of the latents and of one control."""

    control: str
    score: str
    """`rho`, `ap` or `detection`."""
    n_rules: int
    """Rules per latent; 0: no limit."""
    comparison: ControlComparison


def score_together(
    text: FitText, harvest: Harvest, controls: Sequence[Control], *, sizes: Sequence[int], shrinkage: float = SHRINKAGE
) -> tuple[dict[int, Rules], DictionaryScores, dict[str, DictionaryScores]]:
    """Return the rules of an SAE's latents by their number, its scores, and those of each control by its name.

    All codes are explained in one go, as if they were of one dictionary, since much of the work does not depend on their number.

    Args:
        text: the harvest's fit text.
        controls: of the harvest's SAE, with different names.
        sizes: numbers of rules per latent.
    """
    fit, held_out = harvest.fit, harvest.held_out
    fit_codes = join_codes([fit.codes, *(control.fit for control in controls)])
    held_out_codes = join_codes([held_out.codes, *(control.held_out for control in controls)])
    rules = fit_rule_lists(text, fit_codes, sizes=sizes, shrinkage=shrinkage)
    scores = score_rules(rules, fit, held_out, fit_codes=fit_codes, held_out_codes=held_out_codes)
    tree = score_whole_tree(text, held_out, fit_codes=fit_codes, held_out_codes=held_out_codes, shrinkage=shrinkage)
    n = fit.codes.n_latents
    ends = np.cumsum([n, *(control.fit.n_latents for control in controls)]).tolist()
    ours, *others = (
        DictionaryScores(scores.select(slice(start, end)), tree.select(slice(start, end)))
        for start, end in pairwise([0, *ends])
    )
    names = (control.name for control in controls)
    return {size: first_latents(some, n) for size, some in rules.items()}, ours, dict(zip(names, others, strict=True))


def compare_with_controls(
    latents: DictionaryScores, controls: Mapping[str, DictionaryScores], *, stands_for: Int[np.ndarray, "n"]
) -> list[ControlRow]:
    """Return the comparison of the latents' scores with those of each control, for every score and number of rules.

    Args:
        latents: the scores of all latents of the SAE.
        stands_for: the latents for which the latents of the controls stand, in their order.
    """
    ours = latents.by_size()
    return [
        ControlRow(control, *key, compare_pairs(ours[key][stands_for], theirs))
        for control, scores in controls.items()
        for key, theirs in scores.by_size().items()
    ]


def find_percentiles(
    latents: DictionaryScores, control: DictionaryScores, *, score: str, n_rules: int
) -> Float[np.ndarray, "n_latents"]:
    """Return the percentile of each latent of the SAE among the controls whose densities on the held-out text are closest to its own."""
    key = score, n_rules
    return percentiles_at_density(
        latents.by_size()[key], control.by_size()[key], densities=latents.rules.density,
        control_densities=control.rules.density, n_nearest=N_NEAREST,
    )  # fmt: skip


def describe_indistinct(rows: Sequence[ControlRow]) -> list[str]:
    """Return a warning for each control and number of rules whose mean correlation is as high as that of the latents, or almost.

    Such a score says nothing for the SAE. The difference counts as none if it is below 0.05 or within two standard errors of 0.
    """
    lines = []
    for control, score, n_rules, found in rows:
        if score != "rho" or not found.difference <= max(SMALL, 2 * found.standard_error):
            continue
        limit = f"{n_rules} rule{'s' * (n_rules > 1)} per latent" if n_rules else "any number of rules"
        lines.append(
            f"with {limit}, the correlation is {found.latents:.3f} for latents and {found.controls:.3f} for the control {control} "
            f"({found.difference:+.3f} ± {found.standard_error:.3f}): this score does not tell the latents from the control"
        )
    return lines
