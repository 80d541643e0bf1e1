"""The fit of rules for all latents, in blocks of latents."""

import threading
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from crux.sae.reading.conditions import Conditions, Kind
from crux.sae.reading.conjunctions import Conjunctions, find_conjunctions
from crux.sae.reading.fit_text import FitText, prepare_fit
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.overlaps import FeatureOverlaps, Overlaps
from crux.sae.reading.rule_search import ChosenRules, RuleSearch
from crux.sae.reading.rules import Rules, conditions_in_use
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.suffix_pool import SuffixPool, suffix_pool
from crux.sae.reading.threads import map_in_threads
from crux.sae.reading.token_classes import TokenClasses

SHRINKAGE = 2.0
"""κ: the number of tokens whose weight the mean of the next shorter suffix has. Values of 2 to 4 predict held-out text best."""

MAX_BLOCK = 512
"""Largest number of latents that are fitted at once."""

BLOCK_CELLS = 1 << 21
"""Largest number of pairs of a latent of a block and a context feature."""


def fit_rules(
    text: ReadText,
    *,
    n_rules: int,
    token_classes: TokenClasses,
    codes: SparseCodes | None = None,
    shrinkage: float = SHRINKAGE,
) -> Rules:
    """Return the `n_rules` best rules of each latent, fitted on a text.

    Args:
        token_classes: the classes of all tokens of the vocabulary (`classify_tokens`, `no_classes`).
        codes: other codes on the same tokens instead of the text's, such as those of control directions; not negative.
        shrinkage: κ > 0.
    """
    prepared = prepare_fit(text.windows, text.begins, token_classes)
    return fit_rule_lists(prepared, codes or text.codes, sizes=[n_rules], shrinkage=shrinkage)[n_rules]


def fit_rule_lists(
    text: FitText,
    codes: SparseCodes,
    *,
    sizes: Sequence[int],
    shrinkage: float = SHRINKAGE,
    label: str = "fitting rules",
) -> dict[int, Rules]:
    """Return the rules of all latents for several numbers of rules per latent; a shorter list begins a longer one, with its own values.

    The codes may be any on the text that was prepared, so that an SAE and its controls share the preparation. Nothing is random, and ties
    are decided by the number of the suffix or feature. Memory holds a block of latents.
    """
    assert codes.n_tokens == text.n_tokens, f"codes of {codes.n_tokens} tokens for a text of {text.n_tokens}"
    block = int(np.clip(BLOCK_CELLS // max(text.features.n_features, 1), 16, MAX_BLOCK))
    by_latent = codes.matrix().tocsc()
    of_thread = threading.local()

    def fit(first: int) -> dict[int, _Part]:
        overlaps = vars(of_thread).setdefault("overlaps", FeatureOverlaps(text.features))
        overlaps.clear_if_large()
        columns = by_latent[:, first : first + block].tocsr().astype(np.float64)
        return _fit_block(text, columns, overlaps, sizes=sizes, shrinkage=shrinkage)

    blocks = map_in_threads(fit, range(0, codes.n_latents, block), label)
    return _join(text, {size: [parts[size] for parts in blocks] for size in sizes})


COLUMNS = ("value", "increment", "gain", "counts", "total", "base", "mass")
"""Arrays of the rules of a block that are put one behind the other."""


class _Part:
    """The rules of a block of latents."""

    def __init__(
        self, text: FitText, pool: SuffixPool, conjunctions: Conjunctions, chosen: ChosenRules, extra_totals: np.ndarray
    ) -> None:
        n_nodes, n_features = text.tree.n_nodes, text.features.n_features
        exists = (chosen.place > 0) | (chosen.extra >= 0)
        self.n_rules = exists.sum(1)
        rows, rules = np.nonzero(exists)
        place, extra = chosen.place[rows, rules], chosen.extra[rows, rules]
        nodes = pool.nodes[rows, np.maximum(place, 0)]
        # suffixes come first among all conditions, then features, then the conjunctions of all blocks
        self.condition = np.where(place > 0, nodes - 1, n_nodes - 1 + extra)
        counts = np.concatenate([text.features.counts, conjunctions.counts.astype(np.int64)])
        self.counts = np.where(place > 0, text.tree.counts[nodes], counts[extra])
        self.total = np.where(place > 0, pool.totals[rows, np.maximum(place, 0)], extra_totals[rows, rules])
        self.value, self.increment = chosen.value[rows, rules], chosen.increment[rows, rules]
        self.gain = chosen.gain[rows, rules]
        self.base, self.mass = chosen.increment[:, 0], pool.totals[:, 0]
        self.first_conjunction = n_nodes - 1 + n_features
        self.pairs = np.stack(
            [conjunctions.node - 1, n_nodes - 1 + conjunctions.feature, np.full(len(conjunctions.node), -1)], 1
        )


def _fit_block(
    text: FitText, codes: scipy.sparse.csr_matrix, features: FeatureOverlaps, *, sizes: Sequence[int], shrinkage: float
) -> dict[int, _Part]:
    sums = scipy.sparse.csc_matrix(text.indicator @ codes)
    sums.sort_indices()
    pool = suffix_pool(text.tree, text.children, sums, size=4 * max(sizes) + 24, shrinkage=shrinkage)
    feature_totals = (codes.T.tocsr() @ text.features.matrix).toarray()
    conjunctions = find_conjunctions(text, codes, pool.bases, feature_totals, shrinkage=shrinkage)
    overlaps = Overlaps(text, pool.nodes, conjunctions, features)
    search = RuleSearch(text, pool, conjunctions, overlaps, feature_totals, n_rules=max(sizes), shrinkage=shrinkage)
    found: dict[int, _Part] = {}
    for size in range(1, max(sizes) + 1):
        grew = search.step()
        if size in sizes or not grew:
            chosen = search.rules()
            part = _Part(text, pool, conjunctions, chosen, search.totals_of_extras())
            found |= {n: part for n in sizes if n == size or (not grew and n >= size)}
        if not grew:
            break
    return found


def _join(text: FitText, parts: dict[int, list[_Part]]) -> dict[int, Rules]:
    """Return the rules of all blocks for each number of rules, with one table of conditions for all of them."""
    largest = max(parts)
    n_pairs = np.cumsum([0, *(len(part.pairs) for part in parts[largest])])
    nodes = np.arange(1, text.tree.n_nodes)
    table = text.features.conditions
    parts_of_features = table.parts.copy()
    parts_of_features[table.kinds == Kind.BOTH, :2] += len(nodes)
    kinds = np.concatenate([np.full(len(nodes), Kind.SUFFIX), table.kinds, np.full(n_pairs[-1], Kind.BOTH)])
    pairs = [part.pairs for part in parts[largest]]
    conditions = Conditions(kinds, np.concatenate([text.tree.tokens_of(nodes), parts_of_features, *pairs]))
    joined: dict[int, Rules] = {}
    for size, blocks in parts.items():
        numbers = [
            part.condition + np.where(part.condition >= part.first_conjunction, before, 0)
            for part, before in zip(blocks, n_pairs, strict=False)
        ]
        n_rules = np.concatenate([part.n_rules for part in blocks])
        columns = {name: np.concatenate([getattr(part, name) for part in blocks]) for name in COLUMNS}
        indptr = np.concatenate([[0], np.cumsum(n_rules)])
        joined[size] = Rules(conditions, text.classes, indptr, np.concatenate(numbers).astype(np.int32), **columns)
    # a shorter list begins a longer one, so the longest tests everything
    number, kept = conditions_in_use(conditions, joined[largest].condition)
    return {
        size: rules._replace(conditions=kept, condition=number[rules.condition].astype(np.int32))
        for size, rules in joined.items()
    }
