"""Rules as text for people: the tokens of a rule, the mean code where it holds, how much of the latent it covers, and an example."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Int

from crux.sae.figures.visible_text import make_visible
from crux.sae.reading.conditions import Kind, match_text
from crux.sae.reading.harvest import ReadText
from crux.sae.reading.rules import Rules
from crux.sae.reading.sparse_codes import SparseCodes
from crux.sae.reading.sparse_lookup import look_up
from crux.subjects.token_texts import TokenTexts

STRONGEST = 64
"""Number of a latent's strongest tokens among which examples of its rules are sought."""


class RuleText(NamedTuple):
    """A rule in words and numbers."""

    text: str
    """What the rule tests; tokens are printed with visible spaces (␣) and line breaks (↵), in the order of the text."""
    value: float
    """A suffix: the code where it is the longest that holds. Another kind: the correction of the code. From the fit documents."""
    mean: float
    """Mean code over all fit tokens where the condition holds."""
    counts: int
    """Number of these tokens."""
    share: float
    """Their share of the sum of the latent's codes; shares of rules that hold together overlap."""
    gain: float
    """Reduction of the sum of squared errors for which the rule was chosen."""


def token_names(texts: TokenTexts | None, vocab: int) -> list[str]:
    """Return each token as it is printed in rules: with ␣ for spaces and ↵ for line breaks; `#7` if the subject has no tokenizer."""
    if texts is None:
        return [f"#{token}" for token in range(vocab)]
    plain = (texts([token])[0].text for token in range(vocab))
    return [make_visible(text).replace(" ", "␣") if text else f"#{token}" for token, text in enumerate(plain)]


def describe_condition(rules: Rules, condition: int, names: Sequence[str]) -> str:
    """Return what a condition tests, such as `of|␣the`, `␣Lord within the last 8` or `␣the and token before: digits`."""
    parts: list[int] = [int(part) for part in rules.conditions.parts[condition]]
    match Kind(int(rules.conditions.kinds[condition])):
        case Kind.SUFFIX:
            return "|".join(names[token] for token in reversed(parts) if token >= 0)
        case Kind.WITHIN:
            return f"{names[parts[0]]} within the last {parts[1]}"
        case Kind.CLASS:
            return f"{'token' if parts[1] == 0 else 'token before'}: {rules.classes.names[parts[0]]}"
        case Kind.START:
            return "first token of a text"
        case Kind.BOTH:
            return " and ".join(describe_condition(rules, part, names) for part in parts[:2])


def describe_rules(rules: Rules, latent: int, names: Sequence[str]) -> list[RuleText]:
    """Return the rules of a latent in the order of their choice."""
    mass = max(float(rules.mass[latent]), 1e-300)
    return [
        RuleText(
            describe_condition(rules, int(rules.condition[j]), names),
            float(rules.value[j]),
            float(rules.total[j] / max(rules.counts[j], 1)),
            int(rules.counts[j]),
            float(rules.total[j]) / mass,
            float(rules.gain[j]),
        )
        for j in range(rules.indptr[latent], rules.indptr[latent + 1])
    ]


def find_examples(rules: Rules, text: ReadText, codes: SparseCodes | None = None) -> Int[np.ndarray, "rules"]:
    """Return for each rule a token where its condition holds: the strongest of the latent's, or else the first one of the text.

    Only the 64 tokens at which the latent fires most strongly are tried before the first one of the text is taken, which shows a rule that
    says where the latent does not fire. It is −1 if the condition holds nowhere.
    """
    held = match_text(rules.conditions, text.windows, text.begins, rules.classes)
    by_condition = scipy.sparse.csc_matrix(held)
    n_tokens = np.diff(by_condition.indptr)
    first = np.full(len(n_tokens), -1)
    first[n_tokens > 0] = by_condition.indices[by_condition.indptr[:-1][n_tokens > 0]]
    examples = first[rules.condition].astype(np.int64)
    by_latent = scipy.sparse.csc_matrix((codes or text.codes).matrix())
    for latent in range(rules.n_latents):
        mine = slice(rules.indptr[latent], rules.indptr[latent + 1])
        column = slice(by_latent.indptr[latent], by_latent.indptr[latent + 1])
        strongest = np.argsort(np.negative(by_latent.data[column]), kind="stable")[:STRONGEST]
        tokens, conditions = by_latent.indices[column][strongest], rules.condition[mine]
        if len(tokens) and len(conditions):
            shape = (len(conditions), len(tokens))
            there = look_up(held, np.broadcast_to(tokens, shape), np.broadcast_to(conditions[:, None], shape)) > 0
            examples[mine] = np.where(there.any(1), tokens[there.argmax(1)], examples[mine])
    return examples
