"""Explanations of latents by an LLM, judged by an LLM on other documents, with the controls without which the scores say little.

Three steps: `prepare_examples` chooses the passages, `plan_questions` lists what will be asked, for an estimate of the cost, and
`explain_latents` asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from crux.config.progress import track
from crux.sae.llm.asking import Ask, Question, ask_parsed
from crux.sae.llm.examples import Example, LatentExamples, delphi_examples, saebench_examples
from crux.sae.llm.prompts import (
    TYPICAL_EXPLANATION,
    detection_question,
    explain_question,
    fuzzing_question,
    parse_explanation,
    parse_list,
    parse_numbers,
    parse_sentence,
    saebench_explain_question,
    saebench_score_question,
)
from crux.sae.llm.scores import (
    CHANCE,
    Judgements,
    accuracy,
    constant_answer_accuracy,
    fill_answers,
    permute_labels,
    score_judgements,
)
from crux.sae.llm.windows import Decode, ShownText
from crux.sae.llm_options import Protocol
from crux.sae.reading.harvest import Harvest

PER_PROMPT = 5
"""Passages per prompt in detection and fuzzing, as in delphi."""

Parser = Callable[[str], list[bool] | None]


class LlmResults(NamedTuple):
    """The explanations of latents and their scores."""

    table: pd.DataFrame
    """One row per latent; `explain_latents` lists the columns."""
    summary: dict[str, float]
    """Mean and standard error over latents (`_se`) of every score, and counts: latents, failed explanations and failed judgements."""


class _Judged(NamedTuple):
    """One set of passages that is judged with one explanation."""

    latent: int
    task: str
    """`detection`, `fuzzing` or `saebench`."""
    control: bool
    """True if the explanation is that of another latent."""
    explanation: str | None
    """None if it failed: nothing is asked."""
    examples: list[Example]


def prepare_examples(
    harvest: Harvest, *, decode: Decode, latents: Sequence[int], protocol: Protocol, seed: int
) -> dict[int, LatentExamples]:
    """Return the passages of each latent by which it is explained (training documents) and judged (held-out documents).

    Latents that fire in too few passages are left out: the caller reports how many. `choose_latents` chooses latents over the whole range
    of density.

    Args:
        decode: `TokenTexts` of the subject's tokenizer.
    """
    fit, held_out = ShownText(harvest.fit, decode), ShownText(harvest.held_out, decode)
    choose = saebench_examples if protocol is Protocol.saebench else delphi_examples
    codes = zip(latents, fit.latent_codes(latents), held_out.latent_codes(latents), strict=True)
    found = {}
    for latent, fit_codes, held_out_codes in track(codes, "choosing passages", total=len(latents)):
        rng = np.random.default_rng([seed, latent])
        examples = choose(fit, held_out, fit_codes=fit_codes, held_out_codes=held_out_codes, rng=rng)
        if examples is not None:
            found[int(latent)] = examples
    return found


def plan_questions(
    examples: Mapping[int, LatentExamples],
    *,
    protocol: Protocol,
    seed: int,
    cached: Callable[[Question], str | None] | None = None,
) -> list[Question]:
    """Return all questions that `explain_latents` will ask, to estimate their cost.

    Args:
        cached: returns the text of a reply that is known already, so that what follows from it is known too; for the other latents a text
            of typical length stands for the explanation.
    """
    questions, parse = _explain_questions(examples, protocol=protocol, seed=seed)
    explanations = {}
    for latent, question in questions.items():
        text = None if cached is None else cached(question)
        # a different text for each latent, since equal questions are asked once
        explanations[latent] = (None if text is None else parse(text)) or f"{TYPICAL_EXPLANATION} {latent}"
    judged = _plan_judgements(examples, explanations, seed=seed)
    return [*questions.values(), *(question for item in judged for question, _, _ in _judge_questions(item, seed=seed))]


def explain_latents(examples: Mapping[int, LatentExamples], *, ask: Ask, protocol: Protocol, seed: int) -> LlmResults:
    """Explain latents and judge the explanations.

    Columns for delphi's protocol, each score in [0, 1]:
        explanation                 empty if it failed
        prevalence                  share of the held-out passages (32 tokens) in which the latent fires
        detection, fuzzing          balanced accuracy, see `JudgementScore.balanced`; chance and constant answers: ½
        detection_other, fuzzing_other            the same passages with another latent's explanation (delphi's control)
        detection_permuted, fuzzing_permuted      with permuted labels, mean; with `_95`: the 95th percentile
        detection_f1, detection_f1_constant       F1 at the true prevalence, and that of calling every passage active
        detection_hard              share of silent passages with the latent's strongest token that are recognised
    For SAEBench's: `saebench` (accuracy over 14 passages), `saebench_other`, `saebench_permuted`, and `saebench_constant`, the accuracy of
    the answer that no passage activates, 0.714. In both, `n_failed` is the number of the latent's questions (without those of the
    control) that got no reply which could be parsed, after one repetition. Their passages count as ½ right; a latent whose explanation
    failed has ½ everywhere.

    Args:
        ask: asks the LLM; `LlmClient`, or a function of the caller's.
    """
    questions, parse = _explain_questions(examples, protocol=protocol, seed=seed)
    answers = ask_parsed(ask, list(questions.values()), [parse] * len(questions))
    explanations = dict(zip(questions, answers, strict=True))
    judged = _plan_judgements(examples, explanations, seed=seed)
    asked = [(i, *question) for i, item in enumerate(judged) for question in _judge_questions(item, seed=seed)]
    replies = ask_parsed(ask, [question for _, question, _, _ in asked], [parser for _, _, parser, _ in asked])
    parts: dict[int, list[tuple[list[bool] | None, int]]] = {}
    for (i, _, _, size), parsed in zip(asked, replies, strict=True):
        parts.setdefault(i, []).append((parsed, size))
    rows = {
        latent: {
            "latent": latent,
            "explanation": explanations[latent] or "",
            "prevalence": examples[latent].prevalence,
            "n_failed": int(explanations[latent] is None),
        }
        for latent in examples
    }
    for i, item in enumerate(judged):
        of_item = parts.get(i, [])
        answered = [parsed for parsed, _ in of_item]
        filled = (
            fill_answers(answered, [size for _, size in of_item]) if of_item else np.full(len(item.examples), CHANCE)
        )
        rng = np.random.default_rng([seed, item.latent, 1])
        rows[item.latent] |= _score(item, filled, prevalence=examples[item.latent].prevalence, rng=rng)
        if not item.control:
            rows[item.latent]["n_failed"] += sum(parsed is None for parsed in answered)
    table = pd.DataFrame(list(rows.values()))
    counts = {
        "n_latents": len(rows),
        "n_failed_explanations": sum(answer is None for answer in answers),
        "n_judgements": len(asked),
        "n_failed_judgements": sum(reply is None for reply in replies),
    }
    return LlmResults(table, _summarise(table) | counts)


def _explain_questions(
    examples: Mapping[int, LatentExamples], *, protocol: Protocol, seed: int
) -> tuple[dict[int, Question], Callable[[str], str | None]]:
    """Return the question for an explanation of each latent, and the parser of the replies."""
    make, parse = (
        (saebench_explain_question, parse_sentence)
        if protocol is Protocol.saebench
        else (explain_question, parse_explanation)
    )
    return {latent: make(e.explained, seed=seed) for latent, e in examples.items()}, parse


def _plan_judgements(
    examples: Mapping[int, LatentExamples], explanations: Mapping[int, str | None], *, seed: int
) -> list[_Judged]:
    """Return what is judged: each latent's passages with its own explanation, and with that of another latent."""
    order = np.random.default_rng(seed).permutation(sorted(examples)).tolist()
    other = dict(zip(order, order[1:] + order[:1], strict=True))  # never itself, if there are two
    planned = []
    for latent, of_latent in examples.items():
        tasks = {"detection": of_latent.detection, "fuzzing": of_latent.fuzzing}
        if not of_latent.fuzzing:
            tasks = {"saebench": of_latent.detection}
        for task, passages in tasks.items():
            planned.append(_Judged(latent, task, False, explanations[latent], passages))
            if len(order) > 1:
                planned.append(_Judged(latent, task, True, explanations[other[latent]], passages))
    return planned


def _judge_questions(item: _Judged, *, seed: int) -> Iterator[tuple[Question, Parser, int]]:
    """Yield the questions of one judgement, with the parser of each reply and the number of its passages."""
    if item.explanation is None:
        return
    texts = [example.text for example in item.examples]
    if item.task == "saebench":
        question = saebench_score_question(item.explanation, texts, seed=seed)
        yield question, partial(parse_numbers, n=len(texts)), len(texts)
        return
    make = detection_question if item.task == "detection" else fuzzing_question
    for first in range(0, len(texts), PER_PROMPT):
        shown = texts[first : first + PER_PROMPT]
        yield make(item.explanation, shown, seed=seed), partial(parse_list, n=len(shown)), len(shown)


def _score(item: _Judged, answers: np.ndarray, *, prevalence: float, rng: np.random.Generator) -> dict[str, float]:
    labels = np.array([example.label for example in item.examples])
    hard = np.array([example.hard for example in item.examples])
    if item.task == "saebench":
        if item.control:
            return {"saebench_other": accuracy(answers, labels)}
        permuted = np.where(permute_labels(labels, rng), answers, 1 - answers).mean(1)
        return {
            "saebench": accuracy(answers, labels),
            "saebench_permuted": float(permuted.mean()),
            "saebench_permuted_95": float(np.quantile(permuted, 0.95)),
            "saebench_constant": constant_answer_accuracy(labels),
        }
    score = score_judgements(Judgements(answers, labels, hard), prevalence=prevalence, rng=rng)
    if item.control:
        return {f"{item.task}_other": score.balanced}
    scores = {
        item.task: score.balanced,
        f"{item.task}_permuted": score.permuted,
        f"{item.task}_permuted_95": score.permuted_95,
    }
    if item.task == "detection":
        scores |= {
            "detection_f1": score.f1,
            "detection_f1_constant": score.f1_constant,
            "detection_hard": score.hard,
        }
    return scores


def _summarise(table: pd.DataFrame) -> dict[str, float]:
    summary = {}
    for name in table.columns:
        if name in ("latent", "explanation", "n_failed"):
            continue
        values = table[name].dropna().to_numpy(float)
        if len(values):
            summary[name] = float(values.mean())
        if len(values) > 1:
            summary[f"{name}_se"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return summary
