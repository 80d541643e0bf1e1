"""experiment=read with an LLM at an endpoint on this machine: columns, tables, page, failed replies, a run that was cut, mistakes."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from crux.sae.llm.llm_section import score_table
from crux.sae.llm_options import Protocol
from tests.support.html_blocks import HtmlBlocks
from tests.support.llm_server import Answer, llm_server
from tests.support.small_readings import ONLY_RULES

FEW = (*ONLY_RULES, "llm.model=stub", "llm.max_latents=8", "llm.concurrency=4", "llm.max_retries=1", "llm.timeout=10")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def answer_by_hash(body: dict[str, Any]) -> str:
    """Explain each latent by a text of its own; judge at random; one judgement in eight cannot be parsed, whatever its seed."""
    user = body["messages"][1]["content"]
    number = int(hashlib.sha256(user.encode()).hexdigest(), 16)
    if "JSON object" in body["messages"][0]["content"]:
        return json.dumps({"explanation": f"tokens [of] kind |{number % 1000}"})
    if number % 8 == 0:
        return "I cannot say."
    return json.dumps([number >> i & 1 for i in range(len(user.splitlines()) - 2)])


def only_run(place: Path) -> Path:
    (folder,) = (place / "runs").iterdir()
    return folder


def test_explanations_are_in_the_table_the_report_and_the_page_and_a_cut_run_asks_nothing_twice(
    run_crux: Callable[..., int], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*FEW, f"sae.path={trained}")
    seen = 0

    def hang_up_after_thirty(body: dict[str, Any], _: int) -> Answer:
        nonlocal seen
        seen += 1
        return Answer(answer_by_hash(body), hang_up=seen > 30)

    def replies(place: Path) -> list[dict[str, Any]]:
        (file,) = place.glob("harvests/*/llm_replies.jsonl")
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]

    cut = tmp_path / "cut"
    with llm_server(hang_up_after_thirty) as server:
        given = (*words, f"llm.base_url={server.url}", f"cache={cut}", f"output_dir={cut}")
        assert run_crux(*given) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "no connection" in line
        assert "replies are kept, and the same command continues" in line
        n_first = len(replies(cut))
        assert 20 <= n_first <= 30
    with llm_server(lambda body, _: Answer(answer_by_hash(body))) as server:
        assert run_crux(*words, f"llm.base_url={server.url}", f"cache={cut}", f"output_dir={cut}/again") == 0
        assert len({str(body) for body in server.requests}) == len(server.requests)
        n_second = len(server.requests)
        printed = capsys.readouterr().err
        # those that repeat another one with the next seed, because a reply could not be parsed, are not estimated
        n_estimated = len({str(reply["messages"]) for reply in replies(cut)}) - n_first
        assert re.search(rf"stub explains \d latents: {n_estimated} requests, about", printed)
        assert f"{n_first} replies are in the cache" in printed
    assert len(replies(cut)) == n_first + n_second

    folder = only_run(cut / "again")
    features = pd.read_parquet(folder / "features.parquet")
    explained = features["llm_explanation"].notna()
    explanations = features["llm_explanation"].dropna().tolist()
    assert len(explanations) >= 3
    assert all(re.fullmatch(r"tokens \[of\] kind \|\d+", text) for text in explanations)
    scores = features.loc[explained, ["llm_detection", "llm_fuzzing", "llm_detection_other", "llm_detection_permuted"]]
    assert scores.notna().to_numpy().all()
    assert features.loc[~explained].filter(like="llm_").isna().to_numpy().all()

    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["final/llm/detection"] == pytest.approx(features["llm_detection"].mean())
    assert metrics["final/llm/n_failed_explanations"] == 0
    # each reply that cannot be parsed was asked for once more, and then counted
    unparsed = [reply for reply in replies(cut) if reply["text"] == "I cannot say."]
    assert len(unparsed) == 2 * metrics["final/llm/n_failed_judgements"] > 0
    own = sum(features["llm_n_failed"].dropna().tolist())  # those with the latents' own explanations
    assert 0 < own <= metrics["final/llm/n_failed_judgements"]

    report = (folder / "report.md").read_text()
    assert "| score | mean | se | other | permuted | permuted_95 | constant |" in report
    assert re.search(r"\| detection \| 0\.\d+ \| 0\.\d+ \| 0\.\d+ \| 0\.\d+ \| 0\.\d+ \| 0\.5 \|", report)
    assert f"kind \\|{explanations[0].split('|')[1]}" in report
    shown = HtmlBlocks((folder / "latents.html").read_text("utf-8")).manifest["saes"][0]["explanations"]
    assert shown == features["llm_explanation"].fillna("").tolist()
    assert not (folder / "saebench_core.json").exists()  # not asked for


def test_a_reading_that_would_cost_too_much_asks_nothing(
    run_crux: Callable[..., int], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with llm_server(lambda *_: Answer("ok")) as server:
        words = (*FEW, f"sae.path={trained}", f"llm.base_url={server.url}", "llm.max_cost_tokens=1000")
        assert run_crux(*words, f"output_dir={tmp_path}") == 2
        assert server.requests == []
    lines = capsys.readouterr().err.splitlines()
    assert "stub explains" in lines[0]
    assert "llm.max_cost_tokens allows 1,000" in lines[-1]
    assert not (only_run(tmp_path) / "pieces" / "activation").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llm.base_url=127.0.0.1:8000/v1", "llm.model=a"], "must begin with http:// or https://"),
        (["llm.base_url=http://127.0.0.1:8000/v1"], "needs llm.model=<name"),
        (["llm.model=a"], "llm.model: has no effect, because no LLM is asked without llm.base_url"),
        (["llm.base_url=http://127.0.0.1:8000/v1", "llm.model=a", "llm.protocol=other"], "llm.protocol"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, trained: Path, error_message: Callable[..., str]
) -> None:
    assert message in error_message("experiment=read", "tracking=none", f"sae.path={trained}", *words)


def test_a_missing_extra_is_one_line(
    trained: Path, error_message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crux.sae.read_checks.find_spec", lambda _: None)
    words = ("llm.base_url=http://127.0.0.1:8000/v1", "llm.model=a", f"sae.path={trained}")
    assert "pip install 'crux-interp[llm]'" in error_message("experiment=read", "tracking=none", *words)


def test_the_table_of_saebench_has_its_constant_answer() -> None:
    summary = {
        "saebench": 0.8, "saebench_se": 0.01, "saebench_other": 0.6, "saebench_permuted": 0.7,
        "saebench_permuted_95": 0.75, "saebench_constant": 10 / 14,
    }  # fmt: skip
    (row,) = score_table(summary, protocol=Protocol.saebench).to_dict("records")
    assert row.pop("score") == "saebench"
    np.testing.assert_allclose(list(row.values()), [0.8, 0.01, 0.6, 0.7, 0.75, 10 / 14])
