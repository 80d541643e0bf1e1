"""Classes of tokens by their text, such as tokens with a leading space: candidates for rules that no list of tokens can state shortly."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from crux.subjects.token_texts import TokenTexts


class TokenClasses(NamedTuple):
    """The classes that each token of a vocabulary is in."""

    names: tuple[str, ...]
    """Names of the classes, as they are printed in rules."""
    members: Bool[np.ndarray, "vocab classes"]
    """True if the token is in the class; a token may be in several or in none."""


def _is_punctuation(text: str) -> bool:
    return bool(text.strip()) and not any(letter.isalnum() for letter in text)


TESTS: dict[str, Callable[[str], bool]] = {
    "leading space": lambda text: text[:1] == " ",
    "capital": lambda text: text.strip()[:1].isupper(),
    "all capitals": lambda text: len(text.strip()) > 1 and text.isupper(),
    "digits": lambda text: text.strip().isdigit(),
    "punctuation": _is_punctuation,
    "newline": lambda text: "\n" in text,
    "word piece": lambda text: text[:1].isalpha(),  # continues the token before, or begins a line
}
"""The test of each class on the text of a token."""


def classify_tokens(texts: TokenTexts | None, vocab: int) -> TokenClasses:
    """Return the classes of all tokens; no classes if the subject has no tokenizer.

    Each token is decoded by itself, in the middle of a text: a token that is a part of a character is in no class that needs the character.
    """
    if texts is None:
        return no_classes(vocab)
    return classify_texts([texts([token])[0].text for token in range(vocab)])


def classify_texts(texts: Sequence[str]) -> TokenClasses:
    """Return the classes of tokens with these texts."""
    members = np.array([[test(text) for test in TESTS.values()] for text in texts], bool)
    return TokenClasses(tuple(TESTS), members.reshape(len(texts), len(TESTS)))


def no_classes(vocab: int) -> TokenClasses:
    """Return an empty set of classes."""
    return TokenClasses((), np.zeros((vocab, 0), bool))
