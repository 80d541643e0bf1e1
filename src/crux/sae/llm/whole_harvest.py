"""The whole use of an LLM in one call: choose latents and passages, say what it will cost, explain and judge."""

from collections.abc import Callable

from crux.config.errors import UserError
from crux.sae.llm.client import LlmClient
from crux.sae.llm.explain import LlmResults, explain_latents, plan_questions, prepare_examples
from crux.sae.llm.windows import Decode, choose_latents
from crux.sae.llm_options import Protocol
from crux.sae.reading.harvest import Harvest

MIN_FIRINGS = 50
"""A latent that fires on fewer tokens of either side is not explained."""


def explain_harvest(
    harvest: Harvest,
    *,
    client: LlmClient,
    decode: Decode,
    protocol: Protocol,
    max_latents: int,
    seed: int,
    say: Callable[[str], None],
) -> LlmResults:
    """Explain up to `max_latents` latents, evenly spread over the order of density, and judge the explanations on held-out documents.

    The summary has further counts: `n_chosen` latents, of which `n_too_rare` fire in too few passages.

    Args:
        decode: `TokenTexts` of the subject's tokenizer.
        say: is given the estimate of the cost, in one line, before the first request.

    Raises:
        UserError: if no latent fires often enough, the estimate is beyond the client's `max_cost_tokens`, or the endpoint does not answer.
    """
    firings = harvest.fit.codes.firings(), harvest.held_out.codes.firings()
    latents = choose_latents(*firings, n=max_latents, min_firings=MIN_FIRINGS).tolist()
    examples = prepare_examples(harvest, decode=decode, latents=latents, protocol=protocol, seed=seed)
    if not examples:
        raise UserError(
            f"llm: no latent fires in enough passages of both sides; {len(latents)} fire on {MIN_FIRINGS} tokens of each: read more text"
        )
    questions = plan_questions(examples, protocol=protocol, seed=seed, cached=client.cache.get)
    estimate = client.estimate(questions)
    say(f"{client.model} explains {len(examples):,} latents: {estimate.describe()}")
    client.check_cost(estimate)
    results = explain_latents(examples, ask=client, protocol=protocol, seed=seed)
    counts = {"n_chosen": len(latents), "n_too_rare": len(latents) - len(examples)}
    return results._replace(summary=results.summary | counts)
