"""Find out how much text a source has, and which pieces make a sample of a given number of tokens, without tokenising it."""

import heapq

import numpy as np
from jaxtyping import Integer
from tokenizers import Tokenizer

from crux.text.sample import END_OF_RANKS
from crux.text.token_file import SIDES

N_BUCKETS = 1 << 16  # of ranks
N_ENCODED, ENCODED_CHARACTERS = 64, 1024  # pieces, and characters of each, that tell how many tokens a character is


class Survey:
    """Adds up the lengths of all pieces by side and rank, in memory that does not depend on their number."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._characters = {side: np.zeros(N_BUCKETS) for side in SIDES}
        self._tokens = {side: np.zeros(N_BUCKETS) for side in SIDES}  # known without tokenising
        self._sample: list[tuple[int, int, str]] = []  # −rank, length, beginning: those of the smallest ranks
        self._rate: float | None = None

    def add(self, content: str | Integer[np.ndarray, "pos"], *, side: str, rank: int) -> None:
        """Count a piece."""
        bucket = rank * N_BUCKETS // END_OF_RANKS
        if not isinstance(content, str):
            self._tokens[side][bucket] += len(content)
            return
        self._characters[side][bucket] += len(content)
        self._tokens[side][bucket] += 1  # end of text
        if len(self._sample) < N_ENCODED:
            heapq.heappush(self._sample, (-rank, len(content), content[:ENCODED_CHARACTERS]))
        elif -rank > self._sample[0][0]:
            heapq.heapreplace(self._sample, (-rank, len(content), content[:ENCODED_CHARACTERS]))

    def tokens_per_character(self) -> float:
        """Return the number of tokens per character of the whole text, estimated from 64 pieces."""
        if self._rate is None:
            texts = [text for _, _, text in self._sample]
            n_tokens = [len(e.ids) for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
            weighted = sum(n * k / len(t) for n, k, t in zip(n_tokens, self._lengths(), texts, strict=True))
            self._rate = weighted / sum(self._lengths()) if texts else 0.0
        return self._rate

    def _lengths(self) -> list[int]:
        return [length for _, length, _ in self._sample]

    def find_threshold(
        self, side: str, *, tokens: float, collected: int | None = None, collected_below: int | None = None
    ) -> int:
        """Return the rank below which the pieces of a side have about so many tokens.

        Args:
            tokens: number of tokens.
            collected: number of tokens that the pieces with ranks below `collected_below` have turned out to have; the estimate
                is scaled by it.
        """
        expected = np.cumsum(self._tokens[side] + self.tokens_per_character() * self._characters[side])
        if collected is not None and collected_below is not None:
            known = expected[min(N_BUCKETS, collected_below * N_BUCKETS // END_OF_RANKS) - 1]
            expected *= max(collected, 1) / known if known else 1.0
        bucket = int(np.searchsorted(expected, tokens))
        if bucket >= N_BUCKETS - 1:
            return END_OF_RANKS
        threshold = (bucket + 1) * (END_OF_RANKS // N_BUCKETS)
        return max(threshold, (collected_below or 0) + END_OF_RANKS // N_BUCKETS)
