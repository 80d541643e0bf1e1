"""The options of the optional LLM that explains latents and judges explanations. Torch-free."""

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from crux.config.schema import Count, CountOrZero, Rate, TokenCount


class Protocol(Enum):
    """The protocols by which explanations are scored: delphi's detection and fuzzing, or SAEBench's 14 windows."""

    delphi = "delphi"
    saebench = "saebench"


@dataclass
class Llm:
    """An LLM that explains latents and judges the explanations, at any OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Address of the endpoint, such as http://127.0.0.1:8000/v1 (vLLM, llama.cpp, Ollama, OpenRouter, OpenAI, …); null: no LLM is asked."""
    model: str | None = None
    """Name of the model at the endpoint; needed with llm.base_url."""
    api_key_variable: str = MISSING
    """Name of the environment variable that holds the API key. The key itself is never stored or printed."""
    protocol: Protocol = MISSING
    """How explanations are scored: delphi (detection and fuzzing) or saebench (14 windows; a constant answer scores 0.714)."""
    max_latents: Count = MISSING
    """Maximum number of latents to explain, evenly spread over the order of density."""
    max_cost_tokens: TokenCount = MISSING
    """Maximum number of tokens, of prompts and replies together, that new requests may cost; estimated before the first request."""
    concurrency: Count = MISSING
    """Maximum number of requests at a time."""
    timeout: Rate = MISSING
    """Seconds to wait for a reply before a request is repeated."""
    max_retries: CountOrZero = MISSING
    """How often a request is repeated after a timeout, a lost connection, or an answer of 429 or 5xx."""
