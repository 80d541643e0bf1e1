"""Labels of tokens that follow from the text alone, on which probes of latents are trained: no data set is needed.

Every label is binary. Most say something about the text before a token, which the network could know; those that begin with `next_`
are about the token that follows, which it can only predict.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from crux.config.progress import track
from crux.sae.reading.harvest import ReadText
from crux.subjects.token_texts import TokenText

UNDEFINED = -1
"""Label of a token that is not used, because its label does not follow from what is read."""

ARTICLES = frozenset("a an the".split())
PREPOSITIONS = frozenset(
    "about above across after against along among around at before behind below beneath beside between beyond by down during except "
    "for from in into near of off on over past since through throughout to toward under until unto up upon with within without".split()
)
PRONOUNS = frozenset(
    "i me my mine myself thou thee thy thine thyself you your yours yourself he him his himself she her hers herself it its itself we us "
    "our ours ourselves they them their theirs themselves ye who whom whose".split()
)
WORD_CLASSES = {"article": ARTICLES, "preposition": PREPOSITIONS, "pronoun": PRONOUNS}

DIGIT_REACH = 8
"""`digit_nearby`: a digit is among this many tokens, which end at the current one."""

SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s*$")
WORD_START = re.compile(r"\s*[\"'“‘(\[]*[A-Z]")
PUNCTUATION = re.compile(r"\s*[^\w\s]")
DOUBLE_QUOTE = re.compile(r"[\"“”]")


class ProbeLabels(NamedTuple):
    """The labels of all tasks for one side of a harvest."""

    labels: dict[str, Int[np.ndarray, "tokens"]]
    """By task: 1, 0, or `UNDEFINED`; int8."""
    about_next: frozenset[str]
    """The tasks whose label is about the next token."""


def label_tokens(
    read: ReadText,
    texts: Callable[[Sequence[int]], list[TokenText]],
    *,
    end_of_text: int | None,
    given: Mapping[str, Int[np.ndarray, "tokens"]] | None = None,
) -> ProbeLabels:
    """Return the labels of every token of a text.

        next_capital     the next token begins with a capital letter, apart from spaces and quotation marks
        next_punctuation the next token begins with a punctuation mark
        next_continues   the next token continues a word: a letter follows a letter without a space
        in_quotation     the token is within double quotation marks; undefined before the first mark that the window shows
        sentence_start   the token begins a sentence: a capital after `.`, `!` or `?`; undefined at the first token of a text
        digit_nearby     a digit is among the last 8 tokens, this one included
        article, preposition, pronoun    the token is a whole word of a closed list (English, with the older forms)
        early            less than a quarter of the window lies before the token in its text

    The first token of each window is undefined in every task, since its activation is unlike all others, and so are end-of-text tokens.
    Labels about the next token are undefined for the last token of a window and before an end-of-text token.

    Args:
        texts: decodes the tokens of a window: `TokenTexts` of the subject's tokenizer.
        end_of_text: id of the token between two texts; None: there is none.
        given: further labels by task, for example the source of each token, with the same conventions.
    """
    n_windows, context = read.windows.shape
    begins = read.begins.reshape(n_windows, context)
    ends = np.zeros(read.n_tokens, bool) if end_of_text is None else read.tokens == end_of_text
    tasks: dict[str, list[np.ndarray]] = {}
    for window, starts in track(zip(read.windows, begins, strict=True), "labelling the tokens", total=n_windows):
        pieces = [piece.text for piece in texts(window.tolist())]
        for name, labels in _label_window(pieces, starts).items():
            tasks.setdefault(name, []).append(labels)
    labels = {name: np.concatenate(rows) for name, rows in tasks.items()}
    for name, extra in (given or {}).items():
        assert extra.shape == (read.n_tokens,), f"{name} has {extra.shape} labels for {read.n_tokens} tokens"
        labels[name] = extra.astype(np.int8).copy()
    about_next = frozenset(name for name in labels if name.startswith("next_"))
    for name, values in labels.items():
        values[::context] = UNDEFINED
        values[ends] = UNDEFINED
        if name in about_next:
            values[:-1][ends[1:]] = UNDEFINED
    return ProbeLabels(labels, about_next)


def _label_window(pieces: Sequence[str], begins: Bool[np.ndarray, "context"]) -> dict[str, Int[np.ndarray, "context"]]:
    """Return the labels of the tokens of one window, given the text of each."""
    n = len(pieces)
    labels = {
        name: np.zeros(n, np.int8)
        for name in (
            "next_capital", "next_punctuation", "next_continues", "sentence_start", "digit_nearby", "early", *WORD_CLASSES
        )
    }  # fmt: skip
    text_start = 0
    for t, piece in enumerate(pieces):
        if begins[t]:
            text_start = t
        labels["early"][t] = t - text_start < n / 4
        reach = pieces[max(text_start, t - DIGIT_REACH + 1) : t + 1]
        labels["digit_nearby"][t] = any(character.isdigit() for text in reach for character in text)
        before = "".join(pieces[max(text_start, t - 3) : t])
        labels["sentence_start"][t] = (
            UNDEFINED if t == text_start else bool(SENTENCE_END.search(before)) and bool(WORD_START.match(piece))
        )
        has_next = t + 1 < n and not begins[t + 1]
        following = pieces[t + 1] if has_next else ""
        continues = following[:1].isalpha() and piece[-1:].isalpha()
        labels["next_capital"][t] = bool(WORD_START.match(following)) if has_next else UNDEFINED
        labels["next_punctuation"][t] = bool(PUNCTUATION.match(following)) if has_next else UNDEFINED
        labels["next_continues"][t] = continues if has_next else UNDEFINED
        is_whole = not (before[-1:].isalpha() and piece[:1].isalpha()) and not continues
        word = piece.strip().lower()
        for name, words in WORD_CLASSES.items():
            labels[name][t] = is_whole and word in words
    return labels | {"in_quotation": _label_quotations(pieces, begins)}


def _label_quotations(pieces: Sequence[str], begins: Bool[np.ndarray, "context"]) -> Int[np.ndarray, "context"]:
    """Return 1 within double quotation marks; the opening mark is within, the closing mark is not.

    A straight mark opens a quotation if whitespace or nothing precedes it and something else follows; otherwise it closes one. The state
    is unknown until the first mark of a text.
    """
    labels = np.full(len(pieces), UNDEFINED, np.int8)
    state = UNDEFINED
    previous = ""  # the character before the token
    for t, piece in enumerate(pieces):
        if begins[t]:
            state, previous = UNDEFINED, ""
        for match in DOUBLE_QUOTE.finditer(piece):
            before = piece[match.start() - 1] if match.start() else previous
            after = piece[match.end() : match.end() + 1] or "".join(pieces[t + 1 : t + 2])[:1]
            straight_opens = (
                (not before or before.isspace() or before in "([—-") and bool(after) and not after.isspace()
            )
            opens = match[0] == "“" or (match[0] == '"' and straight_opens)
            state = int(opens)
        labels[t] = state
        previous = piece[-1:] or previous
    return labels
