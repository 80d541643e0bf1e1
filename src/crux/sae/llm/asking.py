"""The interface between crux and an LLM: questions go in, replies come out, and replies that cannot be parsed are counted.

Everything that explains or judges is given a function `ask`; only client.py knows that there is a network.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

CHARACTERS_PER_TOKEN = 3.5
"""For estimates before the run; English text has about four."""

TOKENS_PER_MESSAGE = 8
"""For estimates: what the format of a chat adds to each message."""


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    """`system` or `user`."""
    content: str


class Question(NamedTuple):
    """One request to an LLM."""

    messages: tuple[Message, ...]
    max_tokens: int
    """Maximum length of the reply, in the LLM's tokens."""
    seed: int
    """Seed of the LLM's sampling; with another seed the question is a different one."""

    def estimate_tokens(self) -> int:
        """Return the estimated number of tokens of the prompt and of a reply of maximal length."""
        prompt = sum(math.ceil(len(m.content) / CHARACTERS_PER_TOKEN) + TOKENS_PER_MESSAGE for m in self.messages)
        return prompt + self.max_tokens


class Reply(NamedTuple):
    """The reply to a question."""

    text: str | None
    """None if there was no answer after all retries; empty if the answer was no chat completion."""
    failure: str | None
    """Why there is no reply; None if there is one."""
    tokens: int
    """Tokens of prompt and reply, as the endpoint counted them; 0 from the cache."""
    cached: bool


Ask = Callable[[Sequence[Question]], list[Reply]]
"""Returns one reply per question, in order."""

Parsed = TypeVar("Parsed")


def ask_parsed(
    ask: Ask, questions: Sequence[Question], parsers: Sequence[Callable[[str], Parsed | None]]
) -> list[Parsed | None]:
    """Ask questions and return the parsed replies; None for a question that has failed.

    A reply that cannot be parsed is asked for once more, with the next seed.

    Args:
        parsers: one per question; each returns None for a text that it cannot parse.
    """
    replies = ask(questions)
    parsed = [_parse(reply, parse) for reply, parse in zip(replies, parsers, strict=True)]
    again = [i for i, reply in enumerate(replies) if parsed[i] is None and reply.text is not None]
    if again:
        repeated = ask([questions[i]._replace(seed=questions[i].seed + 1) for i in again])
        for i, reply in zip(again, repeated, strict=True):
            parsed[i] = _parse(reply, parsers[i])
    return parsed


def _parse(reply: Reply, parse: Callable[[str], Parsed | None]) -> Parsed | None:
    return None if reply.text is None else parse(reply.text)


class Estimate(NamedTuple):
    """What a run would cost, before it starts."""

    n_requests: int
    """Number of questions without a reply in the cache."""
    n_cached: int
    """Number of questions whose reply is in the cache."""
    tokens: int
    """Estimated tokens of the requests, with replies of maximal length; repeated requests are not counted."""

    def describe(self) -> str:
        """Return the estimate in one line."""
        return f"{self.n_requests:,} requests, about {self.tokens:,} tokens; {self.n_cached:,} replies are in the cache"
