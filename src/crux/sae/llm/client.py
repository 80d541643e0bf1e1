"""The client of an OpenAI-compatible endpoint (extra `[llm]`): concurrent requests, retries, and a cache of all replies."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crux.config.errors import UserError
from crux.config.progress import Advance, progress
from crux.sae.llm.asking import Estimate, Question, Reply
from crux.sae.llm.cache import ReplyCache, describe_question, hash_question, request_parameters

if TYPE_CHECKING:
    import openai

NO_KEY = "none"
"""Sent to endpoints that want no key: the client insists on one."""

MAX_FAILURES_IN_A_ROW = 10
"""The run stops if so many requests in a row fail after all their retries."""


class LlmClient:
    """Asks questions at an endpoint; an instance is an `Ask`.

    Every reply is appended to the cache when it arrives, so that a run that was stopped repeats no request. A request that times out or
    is answered with 429 or 5xx is repeated `max_retries` times with growing pauses (the endpoint's `retry-after` is respected), and then
    counts as failed. The same question within one call is asked once.

    Args:
        base_url, model, api_key_variable, concurrency, timeout, max_retries, max_cost_tokens: see `Llm`.
        cache: file of the replies.

    Raises:
        UserError: if the extra is not installed, or the cache cannot be read.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_variable: str,
        concurrency: int,
        timeout: float,
        max_retries: int,
        max_cost_tokens: int,
        cache: Path,
    ) -> None:
        try:
            import openai  # noqa: F401 - optional
        except ImportError as error:
            raise UserError("an LLM needs the extra `llm`: pip install 'crux-interp[llm]'") from error
        self.base_url, self.model, self._key_variable = base_url, model, api_key_variable
        self._concurrency, self._timeout, self._max_retries = concurrency, timeout, max_retries
        self._max_cost_tokens = max_cost_tokens
        self.cache = ReplyCache(cache, model=model)
        self.tokens_used = 0
        """Tokens of prompts and replies so far, as the endpoint counted them."""
        self._failures_in_a_row = 0

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """Return what asking these questions would cost."""
        new = {hash_question(q, model=self.model): q for q in questions if self.cache.get(q) is None}
        n_cached = sum(self.cache.get(q) is not None for q in questions)
        return Estimate(len(new), n_cached, sum(q.estimate_tokens() for q in new.values()))

    def check_cost(self, estimate: Estimate) -> None:
        """Raise a UserError if the estimate, with what has been used, is beyond `max_cost_tokens`."""
        if self.tokens_used + estimate.tokens > self._max_cost_tokens:
            used = f" and {self.tokens_used:,} have been used" if self.tokens_used else ""
            raise UserError(
                f"the LLM would be asked {estimate.describe()}{used}; llm.max_cost_tokens allows "
                f"{self._max_cost_tokens:,}: raise it, or lower llm.max_latents"
            )

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        """Return one reply per question; raise a UserError if the cost is too high or the endpoint does not answer or refuses."""
        new: dict[str, Question] = {}
        cached: dict[str, Reply] = {}
        keys = [hash_question(question, model=self.model) for question in questions]
        for key, question in zip(keys, questions, strict=True):
            text = self.cache.get(question)
            if text is None:
                new[key] = question
            else:
                cached[key] = Reply(text, None, 0, True)
        if new:
            self.check_cost(self.estimate(list(new.values())))
            with progress(f"asking {self.model}", total=len(new)) as advance:
                replies = _run(self._ask_all(list(new.values()), advance))
            cached |= dict(zip(new, replies, strict=True))
        return [cached[key] for key in keys]

    async def _ask_all(self, questions: Sequence[Question], advance: Advance) -> list[Reply]:
        import openai

        slots = asyncio.Semaphore(self._concurrency)
        async with openai.AsyncOpenAI(
            base_url=self.base_url, api_key=os.environ.get(self._key_variable) or NO_KEY, timeout=self._timeout,
            max_retries=self._max_retries,
        ) as client:  # fmt: skip

            async def ask_one(question: Question) -> Reply:
                async with slots:
                    reply = await self._ask_one(client, question)
                advance()
                return reply

            tasks = [asyncio.create_task(ask_one(question)) for question in questions]
            try:
                return await asyncio.gather(*tasks)
            finally:  # after an error, no further request starts
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_one(self, client: "openai.AsyncOpenAI", question: Question) -> Reply:
        import openai

        messages: Any = describe_question(question, model=self.model)["messages"]
        try:
            answer = await client.chat.completions.create(
                model=self.model, messages=messages, **request_parameters(question)
            )
        except (openai.APITimeoutError, openai.RateLimitError, openai.InternalServerError) as error:
            return self._count_failure(error)
        except openai.APIConnectionError as error:
            raise UserError(
                f"llm.base_url={self.base_url}: no connection ({_first_line(error.__cause__ or error)}); {self._resume_hint()}"
            ) from error
        except openai.APIStatusError as error:
            raise UserError(
                f"llm.base_url={self.base_url} refuses the request: {self._hide_key(_first_line(error))}; {self._resume_hint()}"
            ) from error
        except (openai.APIResponseValidationError, ValueError) as error:  # a body that is not JSON
            return Reply("", f"the answer is no chat completion ({_first_line(error)})", 0, False)
        choices = getattr(answer, "choices", None)
        first = choices[0] if isinstance(choices, list) and choices else None
        content = getattr(getattr(first, "message", None), "content", None)
        if not isinstance(content, str):
            return Reply("", "the answer is no chat completion", 0, False)
        usage = getattr(answer, "usage", None)
        tokens = getattr(usage, "total_tokens", None) or question.estimate_tokens()
        self.tokens_used += tokens
        self._failures_in_a_row = 0
        self.cache.add(question, content, tokens=tokens)
        return Reply(content, None, tokens, False)

    def _count_failure(self, error: Exception) -> Reply:
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise UserError(
                f"llm.base_url={self.base_url}: {self._failures_in_a_row} requests in a row have failed, the last one with "
                f"{self._hide_key(_first_line(error))!r}; {self._resume_hint()}"
            ) from error
        return Reply(None, self._hide_key(_first_line(error)), 0, False)

    def _resume_hint(self) -> str:
        return f"{len(self.cache):,} replies are kept, and the same command continues from there"

    def _hide_key(self, message: str) -> str:
        """Remove the API key from a message, in which some endpoints repeat it."""
        key = os.environ.get(self._key_variable)
        return message.replace(key, "…") if key else message


def _run(work: Any) -> list[Reply]:
    """Run a coroutine to its end, in a notebook too, where a loop is running already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
