"""Rewritten CE: how much of the cross-entropy that an SAE keeps do the rules of its latents keep?

Every code is replaced by what the latent's rules predict from the text, the codes are decoded, and the result replaces the activation:

    R = (CE_mean − CE_rules) / (CE_mean − CE_sae)

with mean ablation as 0 and the SAE as 1. R says how much the rules explain of what the dictionary does for the network, whereas the mean
score of the latents counts every latent alike. The line without a dictionary (`suffix_means`) stores the same number of values as mean
vectors of suffixes, once without counting the numbers of the decoder, and once with them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from crux.sae.architectures.site import Site
from crux.sae.evaluation.running_sums import SUBSETS
from crux.sae.reading.harvest import Harvest
from crux.sae.reading.replacements import (
    Replacement,
    TokenLosses,
    measure_replacements,
    replace_by_rules,
    replace_by_sae,
    replace_by_values,
    replace_by_vector,
    share_recovered,
    spread_text,
)
from crux.sae.reading.rules import Rules
from crux.sae.reading.suffix_means import predict_from_some, rank_suffixes
from crux.sae.reading.suffix_tree import SuffixTree
from crux.subjects.subject import Subject


class RewrittenLoss(NamedTuple):
    """The losses of one replacement of the activation on held-out text, in nats; position 0 is that of the token that is read."""

    replacement: str
    """`clean`, `zero`, `mean`, `sae`, the caller's name of rules, or that name with what the dictionary-free line is equal in."""
    n_rules: int
    """Number of rules, or of suffixes with a mean; 0 if there are none."""
    stored: int
    """Numbers that are stored: values of the rules and bases of alive latents; d for each suffix and the root. −1 for `clean` and `sae`."""
    stored_with_decoder: int
    """The same with the decoder's rows of alive latents and its bias."""
    ce: float
    ce_pos0: float
    ce_rest: float
    kl: float
    """KL(clean ‖ replaced)."""
    kl_pos0: float
    kl_rest: float
    recovered: float
    """R over all predictions."""
    recovered_error: float
    """Standard error of R over windows: of the text, not of the SAE's seed."""
    recovered_pos0: float
    recovered_rest: float


class Rewriting(NamedTuple):
    """The losses of all replacements."""

    rows: list[RewrittenLoss]
    losses: dict[str, TokenLosses]
    """Token by token, by the names of the rows: for differences between SAEs on the same windows (`compare_losses`)."""


SAME_RULES = "means of suffixes, as many numbers as the rules"
SAME_WITH_DECODER = "means of suffixes, as many numbers as rules and decoder"


def measure_rewriting(
    subject: Subject,
    site: Site,
    harvest: Harvest,
    rules: Mapping[str, Rules],
    *,
    tree: SuffixTree,
    mean: Float[np.ndarray, "d_out"],
    x: Float[np.ndarray, "fit_tokens d_out"] | None,
    shrinkage: float,
    min_count: int,
    depth: int,
    max_tokens: int,
    batch: int,
) -> Rewriting:
    """Return the losses of the clean network, of ablations, of the SAE, of each set of rules and of the dictionary-free lines next to it.

    Args:
        site: the folded SAE whose codes the harvest has.
        rules: by name; each has the rules of all latents of the SAE.
        tree: of the harvest's fit text.
        mean: of the activation at the hook point that the SAE writes, over the fit text.
        x: that activation on the fit text, which for an SAE that writes where it reads is the harvest's; None: no dictionary-free lines.
        shrinkage, min_count, depth: of the dictionary-free lines, see `rank_suffixes`.
        max_tokens: held-out tokens, in windows that are evenly spread.
        batch: windows per pass.
    """
    text = spread_text(harvest.held_out, max_tokens)
    alive, d = int((harvest.fit.codes.firings() > 0).sum()), len(mean)
    decoder = (alive + 1) * d
    replacements: dict[str, Replacement] = {
        "zero": replace_by_vector(np.zeros(d), text),
        "mean": replace_by_vector(mean, text),
        "sae": replace_by_sae(site.sae, text),
    }
    sizes: dict[str, tuple[int, int, int]] = {"zero": (0, 0, 0), "mean": (0, d, d)}
    ranked = None if x is None else rank_suffixes(tree, x, shrinkage=shrinkage, min_count=min_count, depth=depth)
    found = tree.find(text.windows, text.begins)
    for name, some in rules.items():
        n_rules = len(some.condition)
        replacements[name] = replace_by_rules(site.sae, some, text)
        sizes[name] = (n_rules, n_rules + alive, n_rules + alive + decoder)
        if x is None or ranked is None:
            continue
        for label, stored in ((SAME_RULES, sizes[name][1]), (SAME_WITH_DECODER, sizes[name][2])):
            m = min(len(ranked), max(0, round(stored / d) - 1))
            values = predict_from_some(tree, ranked[:m], x, found, shrinkage=shrinkage)
            replacements[f"{name}: {label}"] = replace_by_values(values, text)
            sizes[f"{name}: {label}"] = (m, (m + 1) * d, (m + 1) * d)
    losses = measure_replacements(subject, site.write, text.windows, replacements, batch=batch)
    return Rewriting([_summarise(name, losses, sizes.get(name, (0, -1, -1))) for name in losses], losses)


def _summarise(name: str, losses: Mapping[str, TokenLosses], sizes: tuple[int, int, int]) -> RewrittenLoss:
    means = losses[name].means()
    positions = (slice(None), slice(0, 1), slice(1, None))
    shares = [
        share_recovered(losses[name], none=losses["mean"], all_of_it=losses["sae"], positions=part)
        for part in positions
    ]
    losses_by_position = [means[f"{loss}{suffix}"] for loss in ("ce", "kl") for suffix in SUBSETS]
    recovered = shares[0].value, shares[0].standard_error, shares[1].value, shares[2].value
    return RewrittenLoss._make([name, *sizes, *losses_by_position, *recovered])
