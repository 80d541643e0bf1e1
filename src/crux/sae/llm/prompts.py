"""The prompts by which an LLM explains latents and judges explanations, and the parsing of its replies.

No prompt says how many of the examples activate, and none shows an example of a reply with a number of them.
"""

import json
import re
from collections.abc import Sequence

from crux.sae.llm.asking import Message, Question
from crux.sae.llm.windows import CLOSE, OPEN

MAX_EXPLANATION = 400
"""Longest explanation in characters; a longer one is cut."""

EXPLANATION_TOKENS = 120
"""Maximum length of an explaining reply, in the LLM's tokens."""

TYPICAL_EXPLANATION = (
    "a description of what the unit responds to, of about twenty words, which stands here for the true one"
)
"""Stands for an explanation in the estimate of the cost."""

_UNIT = "You study one unit of a neural network that reads text token by token. The unit is active on some tokens and silent on all others."

_EXPLAIN = f"""{_UNIT}
You are shown passages in which it is active. The tokens on which it is active are between {OPEN} and {CLOSE}; ↵ is a line break.
Say in one short phrase what these tokens have in common: a word, a part of words, a kind of word, a grammatical position, a subject, \
or what stands before them. Be as specific as the passages allow, and no more. Answer with a JSON object that has the single key \
"explanation"."""

_DETECT = f"""{_UNIT}
You are told what the unit responds to, and shown numbered passages. Decide for each passage whether the unit is active on at least one \
of its tokens. Any number of them may be, from none to all. Answer with a JSON list only, which has one entry per passage, in order: 1 if \
the unit is active there, 0 if not."""

_FUZZ = f"""{_UNIT}
You are told what the unit responds to, and shown numbered passages with some tokens between {OPEN} and {CLOSE}. Decide for each passage \
whether the unit is active on exactly these tokens, or whether the wrong ones are marked. Any number of passages may be right, from none \
to all. Answer with a JSON list only, which has one entry per passage, in order: 1 if the marks are right, 0 if they are wrong."""

_SAEBENCH_EXPLAIN = f"""{_UNIT}
You are shown passages in which it is active, the strongest first. The tokens on which it is active are between {OPEN} and {CLOSE}; ↵ is \
a line break. Summarise what it is active on in a single sentence of at most 20 words, which covers most of the marked tokens. Write no \
list of words. Begin with: This unit activates on"""

_SAEBENCH_SCORE = f"""{_UNIT}
You are told what the unit responds to, and shown numbered passages in random order. Name the passages in which the unit is active on at \
least one token. Answer with their numbers only, separated by commas, or with the word None if there is none."""


def explain_question(passages: Sequence[str], *, seed: int) -> Question:
    """Ask what the unit responds to, given passages with marked tokens."""
    return Question(_chat(_EXPLAIN, _number(passages)), EXPLANATION_TOKENS, seed)


def detection_question(explanation: str, passages: Sequence[str], *, seed: int) -> Question:
    """Ask in which passages the unit is active (delphi's detection)."""
    return Question(_chat(_DETECT, _given(explanation, passages)), _list_tokens(len(passages)), seed)


def fuzzing_question(explanation: str, passages: Sequence[str], *, seed: int) -> Question:
    """Ask in which passages the right tokens are marked (delphi's fuzzing)."""
    return Question(_chat(_FUZZ, _given(explanation, passages)), _list_tokens(len(passages)), seed)


def saebench_explain_question(passages: Sequence[str], *, seed: int) -> Question:
    """Ask for an explanation as SAEBench does: one sentence, at most 30 tokens."""
    return Question(_chat(_SAEBENCH_EXPLAIN, _number(passages)), 30, seed)


def saebench_score_question(explanation: str, passages: Sequence[str], *, seed: int) -> Question:
    """Ask for the numbers of the activating passages, as SAEBench does."""
    return Question(_chat(_SAEBENCH_SCORE, _given(explanation, passages)), 2 * len(passages) + 5, seed)


def parse_explanation(text: str) -> str | None:
    """Return the explanation in a JSON object; None if there is none."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    if match is None:
        return None
    try:
        content = json.loads(match[0])
    except (ValueError, RecursionError):
        return None
    explanation = content.get("explanation") if isinstance(content, dict) else None
    return _clean_explanation(explanation) if isinstance(explanation, str) else None


def parse_sentence(text: str) -> str | None:
    """Return the explanation in a sentence of SAEBench's form, without its beginning; None if it is empty."""
    return _clean_explanation(text.split("activates on")[-1].strip().rstrip("."))


def parse_list(text: str, n: int) -> list[bool] | None:
    """Return a list of n entries 0 or 1; None if there is none."""
    match = re.search(r"\[[^\[\]]*\]", text)
    if match is None:
        return None
    try:
        content = json.loads(match[0])
    except ValueError:
        return None
    if len(content) != n or not all(isinstance(entry, int) and entry in (0, 1) for entry in content):
        return None
    return [bool(entry) for entry in content]


def parse_numbers(text: str, n: int) -> list[bool] | None:
    """Return which of the numbers 1 to n are in a list separated by commas, `None` being the empty list; None if it is no such list."""
    text = text.strip().rstrip(".")
    if text.lower() == "none":
        return [False] * n
    numbers = [word.strip() for word in text.replace(" and ", ",").split(",")]
    if not all(number.isdecimal() and 1 <= int(number) <= n for number in numbers if number) or not any(numbers):
        return None
    chosen = {int(number) for number in numbers if number}
    return [i in chosen for i in range(1, n + 1)]


def _clean_explanation(text: str) -> str | None:
    return " ".join(text.split())[:MAX_EXPLANATION] or None


def _chat(system: str, user: str) -> tuple[Message, ...]:
    return Message("system", system), Message("user", user)


def _number(passages: Sequence[str]) -> str:
    return "\n".join(f"{i}. {passage}" for i, passage in enumerate(passages, start=1))


def _given(explanation: str, passages: Sequence[str]) -> str:
    return f"The unit responds to: {explanation}\n\n{_number(passages)}"


def _list_tokens(n: int) -> int:
    return 4 * n + 16
