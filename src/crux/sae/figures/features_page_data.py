"""The data of the page of latents. All parts but the columns are optional: what is not known is not on the page.

The page has one row per latent, in any order; everything that is said of latents is an array over rows.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

NO_TOKEN = -1
"""Fills the places of an array of tokens at which there is no token."""

ColumnKind = Literal["number", "share", "percentile", "count"]


class PageColumn(NamedTuple):
    """A number of each latent, by which the list can be sorted and filtered."""

    key: str
    """Its name in links and filters, such as `density`: letters, digits and underscores."""
    label: str
    """Its heading."""
    note: str
    """What it means, in one line, with its unit and the text on which it was measured."""
    values: Float[np.ndarray, "rows"]
    """NaN: no value."""
    kind: ColumnKind = "number"
    """How it is shown: three digits; a share of 1 in %; 0 to 100 with a bar; a whole number."""
    log: bool = False
    """True: it is drawn on a logarithmic scale, and two SAEs are compared by the ratio of their numbers rather than by the difference."""


class PageRule(NamedTuple):
    """A rule that predicts the code of a latent."""

    parts: tuple[int | str, ...]
    """What it says, in order: the ids of tokens, and the words between them, such as `within the last 8 tokens:`."""
    mean: float
    """The code that it predicts, or what it adds to the prediction."""
    n_tokens: int
    """Number of training tokens that it matches."""
    share: float
    """Share of the latent's sum of codes that is on these tokens; between 0 and 1."""
    adds: bool = False
    """True: `mean` is added to what other rules predict."""


class TokenEffects(NamedTuple):
    """The tokens that each latent makes more and less likely, strongest first."""

    promoted: Int[np.ndarray, "rows top"]
    """Token ids; `NO_TOKEN`: none."""
    promoted_effects: Float[np.ndarray, "rows top"]
    promoted_errors: Float[np.ndarray, "rows top"] | None
    """Standard errors; None: the effects are exact."""
    suppressed: Int[np.ndarray, "rows top"]
    suppressed_effects: Float[np.ndarray, "rows top"]
    suppressed_errors: Float[np.ndarray, "rows top"] | None
    unit: str
    """What an effect is, such as `Δ log-probability at a KL of 0.1 nats`."""


class PageContexts(NamedTuple):
    """Contexts of each latent in held-out windows, as places in the text; a context is a range of tokens of one window."""

    windows: Int[np.ndarray, "windows context"]
    """Token ids of all windows, whose tokens are numbered window by window."""
    offsets: Int[np.ndarray, "rows+1"]
    """The contexts of row r are offsets[r] to offsets[r + 1], group by group."""
    groups: Int[np.ndarray, "contexts"]
    """The group of each context: an index into `group_names`."""
    starts: Int[np.ndarray, "contexts"]
    """Number of the first token."""
    lengths: Int[np.ndarray, "contexts"]
    """Number of tokens."""
    peaks: Int[np.ndarray, "contexts"]
    """Index within the context of the token for which it was chosen, on which the latent fires unless its group says otherwise."""
    codes: UInt8[np.ndarray, "codes"]
    """The codes on the tokens of all contexts, one after the other, in units of 1/255 of the latent's maximum; 0 only if it is silent."""
    maxima: Float[np.ndarray, "rows"]
    """The largest code of each latent on all windows; 0: it never fires."""
    group_names: tuple[str, ...]
    predicted: Float[np.ndarray, "contexts"] | None = None
    """The code that the rules predict on the peak; None: there are no rules."""
    ce_known: Bool[np.ndarray, "contexts"] | None = None
    """For which contexts the change of the cross-entropy is known; None: for none."""
    ce_changes: Float[np.ndarray, "tokens"] | None = None
    """The tokens of these contexts, one after the other: by how many nats the network's cross-entropy on the token grows if the latent is
    ablated in the whole window; 0 for the first token of a window, which is not predicted."""


class Neighbours(NamedTuple):
    """The latents of the same SAE that are most similar to each latent."""

    latents: Int[np.ndarray, "rows k"]
    """Their indices in the dictionary; −1: none."""
    cosines: Float[np.ndarray, "rows k"]
    """Cosine of the two directions."""
    correlations: Float[np.ndarray, "rows k"] | None
    """Correlation of the two codes over tokens."""


class SaeFeatures(NamedTuple):
    """What the page shows of the latents of one SAE."""

    name: str
    """A short name, such as `e2e`."""
    facts: Mapping[str, str]
    """Name → value, shown with the name."""
    latents: Int[np.ndarray, "rows"]
    """Index in the dictionary of the latent of each row."""
    columns: Sequence[PageColumn]
    contexts: PageContexts | None = None
    histograms: Int[np.ndarray, "rows bins"] | None = None
    """Number of tokens by code, in equal bins from 0 to the latent's maximum, without the tokens on which it is silent."""
    rules: Sequence[Sequence[PageRule]] | None = None
    """The rules of each latent, most important first."""
    measured: TokenEffects | None = None
    """Measured effects on the next token."""
    lens: TokenEffects | None = None
    """Direct effects on the logits."""
    neighbours: Neighbours | None = None
    explanations: Sequence[str] | None = None
    """A description of each latent in words; empty: none."""


class MatchedPairs(NamedTuple):
    """Latents of two SAEs that are matched one to one; a latent in no pair counts as one that only its SAE has."""

    first: Int[np.ndarray, "pairs"]
    """Index in the dictionary of the first SAE."""
    second: Int[np.ndarray, "pairs"]
    """Index in the dictionary of the second SAE."""
    cosines: Float[np.ndarray, "pairs"]
    """Cosine of the two directions."""
    correlations: Float[np.ndarray, "pairs"] | None
    """Correlation of the two codes over tokens."""


class FeaturesPage(NamedTuple):
    """A page of the latents of one SAE, or of two SAEs of the same network."""

    title: str
    facts: Mapping[str, str]
    """Name → value, shown under the title."""
    first: SaeFeatures
    second: SaeFeatures | None = None
    pairs: MatchedPairs | None = None
    """Needs a second SAE."""


_STANDARD_COLUMNS: dict[str, tuple[str, str, ColumnKind]] = {
    "density": ("density", "share of held-out tokens on which the latent fires", "share"),
    "firings": ("firings", "number of held-out tokens on which the latent fires", "count"),
    "max": ("largest code", "largest code on held-out tokens; it grows with the number of tokens that are read", "number"),
    "p99": ("99th percentile", "99th percentile of the codes that are not zero, on held-out tokens", "number"),
    "rho10": ("ρ@10", "Pearson correlation of the code with what 10 rules predict, over all held-out tokens", "number"),
    "ceiling": ("ρ, all rules", "Pearson correlation with the prediction of the rules before they are pruned", "number"),
    "ap10": ("AP@10", "average precision of 10 rules for whether the latent fires; density is what chance gives", "number"),
    "influence": ("influence", "KL divergence that ablating the latent causes, mean over all tokens, in nats", "number"),
    "strength": ("strength", "KL divergence that ablating the latent causes, mean over the tokens on which it fires, in nats", "number"),
    "rho10_percentile": ("ρ@10 vs controls", "share of control latents of the same density with a lower ρ@10, in %", "percentile"),
    "influence_percentile": (
        "influence vs controls", "share of control latents of the same density with a lower influence, in %", "percentile",
    ),
}  # fmt: skip
"""Key → heading, note and kind."""

_LOGARITHMIC = ("density", "firings", "max", "p99", "influence", "strength")


def make_column(key: str, values: Float[np.ndarray, "rows"]) -> PageColumn:
    """Return one of the columns that most pages have, with its heading and note: density, rho10, influence, and so on.

    Raises:
        KeyError: if there is no such column.
    """
    label, note, kind = _STANDARD_COLUMNS[key]
    return PageColumn(key, label, note, np.asarray(values, np.float64), kind, key in _LOGARITHMIC)
