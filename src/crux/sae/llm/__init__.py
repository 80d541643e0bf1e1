"""An optional language model that explains latents, and whose explanations are scored: any OpenAI-compatible endpoint.

client = LlmClient(base_url=..., model=..., ...)
results = explain_harvest(harvest, client=client, ...)      # explanations, scores, controls and counts of failed replies
"""

from typing import TYPE_CHECKING

from crux.config.lazy import lazy_exports

if TYPE_CHECKING:
    from crux.sae.llm.cache import ReplyCache
    from crux.sae.llm.client import LlmClient
    from crux.sae.llm.explain import LlmResults, explain_latents, plan_questions, prepare_examples
    from crux.sae.llm.whole_harvest import explain_harvest
    from crux.sae.llm_options import Llm, Protocol

__all__ = [
    "Llm",
    "LlmClient",
    "LlmResults",
    "Protocol",
    "ReplyCache",
    "explain_harvest",
    "explain_latents",
    "plan_questions",
    "prepare_examples",
]

# each name of __all__ is imported on first use, from the module that the TYPE_CHECKING block gives for it
__getattr__, __dir__ = lazy_exports(__name__)
