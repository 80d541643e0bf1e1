"""The part of a reading that an LLM writes: explanations of some latents, and their scores next to those of the controls."""

import sys

import numpy as np
import pandas as pd

from crux.config.errors import UserError
from crux.sae.llm.client import LlmClient
from crux.sae.llm.explain import LlmResults
from crux.sae.llm.whole_harvest import explain_harvest
from crux.sae.llm_options import Llm, Protocol
from crux.sae.reading.section import Reading, Section

PREFIX = "llm_"
"""Begins the names of the columns."""

REPLIES = "llm_replies.jsonl"
"""File of the cache that keeps every reply, next to the codes of the SAE."""

BALANCED_CONSTANT = 0.5
"""Balanced accuracy of every constant answer."""


def describe_explanations(reading: Reading, llm: Llm) -> Section:
    """Let an LLM explain latents and judge the explanations on held-out documents.

    The estimate of the cost is printed before the first request. Every reply is kept in the cache, so that a run which was stopped asks
    nothing twice.

    Raises:
        UserError: if the subject has no tokenizer, no latent fires often enough, the estimate is beyond `llm.max_cost_tokens`, or the
            endpoint does not answer or refuses.
    """
    if reading.texts is None:
        raise UserError("llm.base_url: the subject has no tokenizer, without which an LLM cannot read its text")
    assert llm.base_url is not None  # nothing is explained without it
    assert llm.model is not None  # the checks of the job refuse that
    client = LlmClient(
        base_url=llm.base_url, model=llm.model, api_key_variable=llm.api_key_variable, concurrency=llm.concurrency,
        timeout=llm.timeout, max_retries=llm.max_retries, max_cost_tokens=llm.max_cost_tokens,
        cache=reading.harvest.folder / REPLIES,
    )  # fmt: skip
    results = explain_harvest(
        reading.harvest, client=client, decode=reading.texts, protocol=llm.protocol, max_latents=llm.max_latents,
        seed=reading.seed, say=_print_line,
    )  # fmt: skip
    return make_section(results, protocol=llm.protocol, tokens_used=client.tokens_used)


def make_section(results: LlmResults, *, protocol: Protocol, tokens_used: int) -> Section:
    """Return the explanations and scores as columns, tables and metrics.

    Args:
        tokens_used: tokens of prompts and replies of this start, as the endpoint counted them; replies from the cache cost nothing.
    """
    table, summary = results
    features = table.set_index("latent").add_prefix(PREFIX)
    counts = {
        "latents chosen": summary["n_chosen"], "too rare": summary["n_too_rare"], "explained": summary["n_latents"],
        "failed explanations": summary["n_failed_explanations"], "judgements": summary["n_judgements"],
        "failed judgements": summary["n_failed_judgements"], "tokens used": tokens_used,
    }  # fmt: skip
    shown = [name for name in ("latent", *_tasks(protocol), "explanation", "n_failed") if name in table]
    tables = {
        "llm": score_table(summary, protocol=protocol), "llm_counts": pd.DataFrame([counts]),
        "llm_explanations": table[shown],
    }  # fmt: skip
    metrics = {f"llm/{name}": float(value) for name, value in summary.items() if np.isfinite(value)}
    return Section(features, tables, metrics)


def score_table(summary: dict[str, float], *, protocol: Protocol) -> pd.DataFrame:
    """Return one row per score: its mean and standard error over latents, and the levels that answers without knowledge reach.

    Columns: score, mean, se; other: with another latent's explanation; permuted: with permuted labels, and permuted_95, their 95th
    percentile; constant: the best constant answer.
    """
    rows = []
    for task in _tasks(protocol):
        rows.append(
            {
                "score": task, "mean": summary.get(task), "se": summary.get(f"{task}_se"),
                "other": summary.get(f"{task}_other"), "permuted": summary.get(f"{task}_permuted"),
                "permuted_95": summary.get(f"{task}_permuted_95"),
                "constant": summary.get(f"{task}_constant", BALANCED_CONSTANT),
            }
        )  # fmt: skip
    if protocol is Protocol.delphi:
        for name, constant in (("detection_f1", summary.get("detection_f1_constant")), ("detection_hard", None)):
            rows.append(
                {"score": name, "mean": summary.get(name), "se": summary.get(f"{name}_se"), "constant": constant}
            )
    columns = ["mean", "se", "other", "permuted", "permuted_95", "constant"]
    table = pd.DataFrame(rows)
    return table.astype(dict.fromkeys(columns, float))


def _tasks(protocol: Protocol) -> tuple[str, ...]:
    return ("saebench",) if protocol is Protocol.saebench else ("detection", "fuzzing")


def _print_line(line: str) -> None:
    print(f"crux: {line}", file=sys.stderr, flush=True)
