"""Explanations and scores with an LLM that is a function: one that knows the answers, constant ones, and one that fails."""

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.sparse

from crux.sae.llm.asking import Question, Reply
from crux.sae.llm.examples import WIDTH, LatentExamples, saebench_examples
from crux.sae.llm.explain import LlmResults, explain_latents, plan_questions, prepare_examples
from crux.sae.llm.prompts import parse_explanation, parse_list, parse_numbers, parse_sentence
from crux.sae.llm.scores import (
    Judgements,
    accuracy,
    balanced_accuracy,
    constant_answer_accuracy,
    fill_answers,
    score_judgements,
)
from crux.sae.llm.windows import ShownText, Span, choose_activating, choose_latents, grid_peaks
from crux.sae.llm_options import Protocol
from crux.sae.reading.harvest import ReadText, find_text_begins
from crux.sae.reading.sparse_codes import SparseCodes
from tests.support.known_latents import END, HARVEST, N_LATENTS, decode, know, make_side


def ask_with(answer: Callable[[Question], str | None]) -> Callable[[Sequence[Question]], list[Reply]]:
    return lambda questions: [Reply(answer(q), None, 0, False) for q in questions]


def run(answer: Callable[[Question], str | None], protocol: Protocol = Protocol.delphi) -> LlmResults:
    examples = prepare_examples(HARVEST, decode=decode, latents=range(N_LATENTS), protocol=protocol, seed=0)
    return explain_latents(examples, ask=ask_with(answer), protocol=protocol, seed=0)


def test_an_llm_that_knows_scores_one_and_another_explanation_scores_chance() -> None:
    table, summary = run(know)
    assert table["explanation"].tolist() == [f"w{i + 1}x" for i in range(N_LATENTS)]
    for name in ("detection", "fuzzing", "detection_f1"):
        np.testing.assert_allclose(table[name], 1)
    assert np.isnan(table["detection_hard"].to_numpy()).all()  # no silent passage contains the word
    # another word is in hardly any activating passage and in hardly any silent one
    np.testing.assert_allclose(table["detection_other"], 0.5, atol=0.26)
    assert abs(summary["detection_other"] - 0.5) < 0.1
    np.testing.assert_allclose(table["fuzzing_other"], 0.5, atol=0.1)
    assert abs(summary["detection_permuted"] - 0.5) < 0.02
    assert summary["n_failed_explanations"] == summary["n_failed_judgements"] == 0
    assert summary["detection_se"] == 0
    assert 0.2 < summary["prevalence"] < 0.35  # 1 − 0.99^32


@pytest.mark.parametrize(("word", "f1"), [("1", "constant"), ("0", "zero")])
def test_a_constant_answer_scores_chance(word: str, f1: str) -> None:
    def answer(question: Question) -> str:
        if "JSON object" in question.messages[0].content:
            return '{"explanation": "anything"}'
        n = len(question.messages[1].content.splitlines()) - 2
        return "[" + ", ".join([word] * n) + "]"

    table, _ = run(answer)
    for name in ("detection", "fuzzing", "detection_other", "fuzzing_other", "detection_permuted"):
        np.testing.assert_allclose(table[name], 0.5)
    constant = table["detection_f1_constant"].to_numpy()
    np.testing.assert_allclose(table["detection_f1"], constant if f1 == "constant" else 0 * constant)
    p = table["prevalence"]
    np.testing.assert_allclose(table["detection_f1_constant"], 2 * p / (1 + p))


def test_saebench_scores_the_constant_answer_at_ten_of_fourteen() -> None:
    table, summary = run(know, Protocol.saebench)
    np.testing.assert_allclose(table["saebench"], 1)
    np.testing.assert_allclose(table["saebench_constant"], 10 / 14)
    assert summary["saebench_constant"] == pytest.approx(0.714, abs=5e-4)

    def none(question: Question) -> str:
        return "This unit activates on anything" if "Summarise" in question.messages[0].content else "None"

    table, summary = run(none, Protocol.saebench)
    np.testing.assert_allclose(table["saebench"], 10 / 14)
    np.testing.assert_allclose(table["saebench_other"], 10 / 14)
    np.testing.assert_allclose(table["saebench_permuted"], 10 / 14)


def test_failures_are_counted_and_count_as_chance() -> None:
    """Explanations of latent 0 fail, and so do half of the judgements of the others."""

    def answer(question: Question) -> str | None:
        text = know(question)
        if '{"explanation": "w1x"}' in text:
            return "I cannot say"
        return None if text.startswith("[1") else text

    table, summary = run(answer)
    assert summary["n_failed_explanations"] == 1
    first, others = table.iloc[0], table.iloc[1:]
    assert first["explanation"] == ""
    assert (first["detection"], first["fuzzing"], first["n_failed"]) == (0.5, 0.5, 1)
    assert summary["n_failed_judgements"] >= others["n_failed"].sum() > 0
    assert others["detection"].between(0.5, 1).all()
    assert 0.5 < others["detection"].mean() < 1
    assert summary["n_judgements"] == 2 * 5 * (
        4 + 4
    )  # neither with the failed explanation: 20 passages and 5 per prompt, twice


def test_passages_are_what_they_claim_to_be() -> None:
    examples = prepare_examples(HARVEST, decode=decode, latents=[2, 4], protocol=Protocol.delphi, seed=0)
    assert set(examples) == {2, 4}
    of_two = examples[2]
    assert len(of_two.explained) == 15
    assert all("<< w3x>>" in passage for passage in of_two.explained)
    assert sum(e.label for e in of_two.detection) == 10
    assert all((" w3x" in e.text) == e.label for e in of_two.detection)
    assert all(e.text.count(" w") == WIDTH for e in of_two.detection)
    assert len({e.text for e in of_two.detection}) == len(of_two.detection)
    marked = [len(re.findall(r" w\d+x", "".join(re.findall(r"<<(.*?)>>", e.text)))) for e in of_two.fuzzing]
    right = [n for n, e in zip(marked, of_two.fuzzing, strict=True) if e.label]
    wrong = [n for n, e in zip(marked, of_two.fuzzing, strict=True) if not e.label]
    assert set(wrong) == {int(np.ceil(np.mean(right)))}
    assert prepare_examples(HARVEST, decode=decode, latents=[2, 4], protocol=Protocol.delphi, seed=0) == examples
    assert prepare_examples(HARVEST, decode=decode, latents=[2, 4], protocol=Protocol.delphi, seed=1) != examples


def test_hard_passages_have_the_strongest_token_and_are_silent() -> None:
    """The latent fires only on every second occurrence of its word."""
    harvest = HARVEST._replace(fit=halve(HARVEST.fit), held_out=halve(HARVEST.held_out))
    examples = prepare_examples(harvest, decode=decode, latents=[1], protocol=Protocol.delphi, seed=0)[1]
    hard = [e for e in examples.detection if e.hard]
    assert len(hard) == 5
    assert all(" w2x" in e.text and not e.label for e in hard)


def halve(read: ReadText) -> ReadText:
    matrix = read.codes.matrix().tolil()
    on = np.flatnonzero(read.tokens == 2)
    matrix[on[::2], 1] = 0
    csr = scipy.sparse.csr_matrix(matrix)
    csr.eliminate_zeros()
    codes = SparseCodes(
        csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data.astype(np.float32), N_LATENTS
    )
    return read._replace(codes=codes)


def test_a_latent_that_fires_too_rarely_is_left_out() -> None:
    few = HARVEST._replace(held_out=make_side(1, n_windows=4))
    assert prepare_examples(few, decode=decode, latents=range(N_LATENTS), protocol=Protocol.delphi, seed=0) == {}
    text = ShownText(few.held_out, decode)
    (codes,) = text.latent_codes([0])
    found = saebench_examples(
        text, text, fit_codes=codes, held_out_codes=np.zeros_like(codes), rng=np.random.default_rng(0)
    )
    assert found is None


def test_saebench_passages_do_not_overlap_and_are_centred() -> None:
    examples = prepare_examples(HARVEST, decode=decode, latents=[3], protocol=Protocol.saebench, seed=0)[3]
    assert len(examples.explained) == 15
    for passage in examples.explained:
        assert passage.count(" w") == 21
        assert re.findall(r" w\d+x", passage)[10] == " w4x"
    assert [len(examples.detection), sum(e.label for e in examples.detection)] == [14, 4]
    assert all((" w4x" in e.text) == e.label for e in examples.detection)


def test_the_plan_lists_the_questions_that_are_asked() -> None:
    examples = prepare_examples(HARVEST, decode=decode, latents=range(N_LATENTS), protocol=Protocol.delphi, seed=0)
    asked: list[Question] = []

    def record(question: Question) -> str:
        asked.append(question)
        return know(question)

    explain_latents(examples, ask=ask_with(record), protocol=Protocol.delphi, seed=0)
    plan = plan_questions(examples, protocol=Protocol.delphi, seed=0)
    assert len(plan) == len(asked)
    assert len(set(plan)) == len(set(asked)) == len(asked)
    assert plan[:N_LATENTS] == asked[:N_LATENTS]
    known = {q: know(q) for q in asked}
    assert plan_questions(examples, protocol=Protocol.delphi, seed=0, cached=known.get) == asked
    estimate, actual = (sum(q.estimate_tokens() for q in questions) for questions in (plan, asked))
    assert 1 <= estimate / actual < 1.3


def test_activating_passages_are_of_every_fifth_of_the_ranks() -> None:
    peaks = np.arange(100, dtype=np.float32).reshape(10, 10)
    usable = np.ones((10, 10), bool)
    spans = choose_activating(peaks, usable, n_top=9, per_quantile=2, width=4, rng=np.random.default_rng(0))
    found = [peaks[s.row, s.first // 4] for s in spans]
    assert found[:9] == list(range(99, 90, -1))
    fifths = [int((90 - value) // 18) for value in found[9:]]  # of the 90 others, 18 in each
    assert fifths == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_the_grid_keeps_to_one_text_and_away_from_the_first_token() -> None:
    windows = np.array([[5, 6, 7, 8, 9, END, 7, 8]])
    empty = SparseCodes(np.zeros(9, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 1)
    text = ShownText(ReadText(windows, find_text_begins(windows, END), empty, None), decode)
    assert text.grid(2).tolist() == [[False, True, True, True]]
    assert text.grid(4).tolist() == [[False, False]]
    assert text.grid(3).tolist() == [[False, True]]
    assert grid_peaks(np.arange(8, dtype=np.float32)[None], 3).tolist() == [[2, 5]]
    assert text.show(Span(0, 1, 4), np.array([True, True, False, True])) == "<< w6x w7x>> w8x<< w9x>>"


def test_latents_are_spread_over_the_order_of_density() -> None:
    firings = np.array([0, 100, 50, 1000, 20, 5, 400])
    assert choose_latents(firings, firings, n=3, min_firings=20).tolist() == [3, 1, 4]
    assert choose_latents(firings, firings, n=10, min_firings=20).tolist() == [3, 6, 1, 2, 4]
    assert choose_latents(firings, firings // 10, n=10, min_firings=20).tolist() == [3, 6]


def test_scores_by_hand() -> None:
    answers = np.array([1.0, 1, 0.5, 0, 1, 0, 0, 0, 1])
    labels = np.array([True, True, True, True, False, False, False, False, False])
    hard = np.array([False] * 8 + [True])
    score = score_judgements(Judgements(answers, labels, hard), prevalence=0.1, rng=np.random.default_rng(0))
    assert score.balanced == pytest.approx((2.5 / 4 + 3 / 4) / 2)
    precision = 0.1 * 0.625 / (0.1 * 0.625 + 0.9 * 0.25)
    assert score.f1 == pytest.approx(2 * precision * 0.625 / (precision + 0.625))
    assert score.f1_constant == pytest.approx(0.2 / 1.1)
    assert score.hard == 0
    assert score.permuted == pytest.approx(0.5, abs=0.03)
    # 8 labels of which 4 are true: balanced accuracy is (Σ answers of the true ones · 2 − 3.5) / 8 + ½, which has few values
    assert 0.6 < score.permuted_95 <= (3.5 / 4 + 1) / 2
    assert accuracy(answers[:8], labels[:8]) == pytest.approx(5.5 / 8)
    assert balanced_accuracy(np.full(8, 0.5), labels[:8]) == 0.5
    assert constant_answer_accuracy(np.array([True] * 4 + [False] * 10)) == pytest.approx(0.714, abs=5e-4)
    assert fill_answers([[True, False], None], [2, 3]).tolist() == [1, 0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"explanation": " the  word\\n x "}', "the word x"),
        ('```json\n{"explanation": "a"}\n```', "a"),
        ('{"explanation": ""}', None),
        ('{"explanation": 3}', None),
        ('{"reason": "a"}', None),
        ("", None),
        ('{"explanation": "a"', None),
    ],
)
def test_parsing_explanations(text: str, expected: str | None) -> None:
    assert parse_explanation(text) == expected


def test_parsing_answers() -> None:
    assert parse_list("[1, 0, 1]", 3) == [True, False, True]
    assert parse_list("Answer: [1,0]", 2) == [True, False]
    for text in ("[1, 0]", "1, 0, 1", "[1, 0, 2]", '["1", 0, 1]', "[1, 0, 1", "[1.0, 0, 1]", ""):
        assert parse_list(text, 3) is None
    assert parse_numbers("1, 3", 4) == [True, False, True, False]
    assert parse_numbers("2 and 4.", 4) == [False, True, False, True]
    assert parse_numbers("None", 3) == [False] * 3
    for text in ("", "0", "5", "one", "1; 2", "-1"):
        assert parse_numbers(text, 4) is None
    assert parse_sentence("This unit activates on the word 'x'.") == "the word 'x'"
    assert parse_sentence(" ") is None


def test_the_prompts_do_not_tell_the_number_of_activating_passages() -> None:
    examples = prepare_examples(HARVEST, decode=decode, latents=[0, 1], protocol=Protocol.saebench, seed=0)
    *_, question = plan_questions(examples, protocol=Protocol.saebench, seed=0)
    assert isinstance(examples[0], LatentExamples)
    assert not re.search(r"\d", question.messages[0].content)
