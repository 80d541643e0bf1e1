"""The client against an endpoint on this machine: retries, failures, the cache, resuming, and the limit of the cost."""

import json
from pathlib import Path
from typing import Any

import pytest

from crux.config.errors import UserError
from crux.sae.llm.asking import Message, Question, ask_parsed
from crux.sae.llm.cache import ReplyCache, hash_question
from crux.sae.llm.client import MAX_FAILURES_IN_A_ROW, LlmClient
from crux.sae.llm.prompts import parse_list
from tests.support.llm_server import Answer, StubServer, llm_server

KEY_VARIABLE, KEY = "CRUX_TEST_LLM_KEY", "sk-secret"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def question(i: int) -> Question:
    return Question((Message("system", "Answer."), Message("user", f"question {i}")), 20, 0)


def number(body: dict[str, Any]) -> int:
    return int(body["messages"][-1]["content"].split()[-1])


def make_client(server: StubServer | str, cache: Path, **changes: Any) -> LlmClient:
    arguments: dict[str, Any] = {
        "base_url": server if isinstance(server, str) else server.url, "model": "stub", "concurrency": 8, "timeout": 5.0,
        "api_key_variable": KEY_VARIABLE, "max_retries": 3, "max_cost_tokens": 100_000, "cache": cache / "replies.jsonl",
    }  # fmt: skip
    return LlmClient(**arguments | changes)


def test_replies_come_in_order_and_are_kept(tmp_path: Path) -> None:
    with llm_server(lambda body, _: Answer(f"reply {number(body)}", delay=0.02)) as server:
        client = make_client(server, tmp_path, concurrency=3)
        replies = client([question(i) for i in (0, 1, 2, 3, 4, 5, 1)])
        assert [reply.text for reply in replies] == [f"reply {i}" for i in (0, 1, 2, 3, 4, 5, 1)]
        assert len(server.requests) == 6  # the repeated question is asked once
        assert 1 < server.most_at_once[0] <= 3
        assert client.tokens_used == 6 * 40
        assert {(r["model"], r["temperature"], r["seed"], r["max_tokens"]) for r in server.requests} == {
            ("stub", 0, 0, 20)
        }
        assert set(server.keys) == {f"Bearer {KEY}"}
        again = make_client(server, tmp_path)([question(i) for i in range(6)])
        assert all(reply.cached for reply in again)
        assert len(server.requests) == 6
    content = (tmp_path / "replies.jsonl").read_text()
    assert KEY not in content
    entries = [json.loads(line) for line in content.splitlines()]
    assert {entry["messages"][1]["content"] for entry in entries} == {f"question {i}" for i in range(6)}


def test_too_many_requests_and_errors_of_the_server_are_repeated(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], earlier: int) -> Answer:
        status = {0: 429, 1: 500, 2: 503}.get(number(body), 200)
        return (
            Answer(None, status, b'{"error": {"message": "later"}}') if earlier == 0 and status != 200 else Answer("ok")
        )

    with llm_server(answer) as server:
        replies = make_client(server, tmp_path)([question(i) for i in range(4)])
        assert [reply.text for reply in replies] == ["ok"] * 4
        assert len(server.requests) == 7


def test_a_request_that_always_fails_is_a_counted_failure(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], earlier: int) -> Answer:
        return Answer(None, 500, b"{}") if number(body) == 1 else Answer("[1]")

    with llm_server(answer) as server:
        client = make_client(server, tmp_path, max_retries=2)
        answers = ask_parsed(client, [question(i) for i in range(3)], [lambda text: parse_list(text, 1)] * 3)
        assert answers == [[True], None, [True]]
        assert sum(number(body) == 1 for body in server.requests) == 3  # one attempt and two retries
    with llm_server(lambda *_: Answer("[0]")) as server:  # a failure is not kept: the next run asks again
        assert make_client(server, tmp_path)([question(1)])[0].text == "[0]"
        assert len(server.requests) == 1


def test_a_timeout_is_a_counted_failure(tmp_path: Path) -> None:
    with llm_server(lambda body, _: Answer("ok", delay=1.0 * (number(body) == 0))) as server:
        replies = make_client(server, tmp_path, timeout=0.3, max_retries=1)([question(0), question(1)])
        assert replies[0].text is None
        assert "timed out" in (replies[0].failure or "")
        assert replies[1].text == "ok"


@pytest.mark.parametrize(
    "bad",
    [
        Answer("no list"),
        Answer(""),
        Answer("[1, 0]"),
        Answer(None, 200, b'{"choices": ['),
        Answer(None, 200, b'{"choices": []}'),
        Answer(None, 200, b'"text"'),
        Answer(None, 200, b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": null}}]}'),
    ],
)
def test_a_malformed_reply_is_repeated_once_and_then_failed(tmp_path: Path, bad: Answer) -> None:
    parsers = [lambda text: parse_list(text, 1)] * 2
    with llm_server(lambda body, _: bad if number(body) == 0 or body["seed"] == 0 else Answer("[1]")) as server:
        answers = ask_parsed(make_client(server, tmp_path), [question(0), question(1)], parsers)
        assert answers == [None, [True]]
        assert sorted((number(body), body["seed"]) for body in server.requests) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_run_that_loses_the_endpoint_continues_without_a_repeated_request(tmp_path: Path) -> None:
    questions = [question(i) for i in range(12)]
    with llm_server(lambda body, _: Answer(f"reply {number(body)}", hang_up=number(body) >= 5)) as server:
        with pytest.raises(UserError, match=r"no connection .*5 replies are kept") as error:
            make_client(server, tmp_path, concurrency=1, max_retries=1)(questions)
        assert "\n" not in str(error.value)
        answered = {number(body) for body in server.requests if number(body) < 5}
        assert answered == set(range(5))
    with (tmp_path / "replies.jsonl").open("ab") as file:
        file.write(b'{"key": "cut off in the mid')  # a process that was killed while writing
    with llm_server(lambda body, _: Answer(f"reply {number(body)}")) as server:
        replies = make_client(server, tmp_path)(questions)
        assert [reply.text for reply in replies] == [f"reply {i}" for i in range(12)]
        assert sorted(number(body) for body in server.requests) == list(range(5, 12))
    with llm_server(lambda *_: Answer(None, 500, b"{}")) as server:
        assert all(reply.cached for reply in make_client(server, tmp_path)(questions))
        assert server.requests == []


def test_an_endpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with llm_server(lambda *_: Answer("ok")) as server:
        url = server.url
    with pytest.raises(UserError, match=rf"llm.base_url={url}: no connection"):
        make_client(url, tmp_path, max_retries=0)([question(0)])


def test_a_refusal_is_one_line_without_the_key(tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    with llm_server(lambda *_: Answer(None, 401, body)) as server:
        with pytest.raises(UserError, match="refuses the request") as error:
            make_client(server, tmp_path)([question(0), question(1)])
        assert KEY not in str(error.value)
        assert "\n" not in str(error.value)


def test_a_run_stops_if_everything_fails(tmp_path: Path) -> None:
    with llm_server(lambda *_: Answer(None, 500, b"{}")) as server:
        client = make_client(server, tmp_path, max_retries=0, concurrency=2)
        with pytest.raises(UserError, match=f"{MAX_FAILURES_IN_A_ROW} requests in a row have failed"):
            client([question(i) for i in range(100)])
        assert len(server.requests) < 20


def test_the_cost_is_estimated_and_limited_before_the_first_request(tmp_path: Path) -> None:
    with llm_server(lambda *_: Answer("ok")) as server:
        client = make_client(server, tmp_path, max_cost_tokens=1000)
        client([question(0)])
        assert len(server.requests) == 1
        estimate = client.estimate([question(i) for i in range(40)])
        assert (estimate.n_requests, estimate.n_cached) == (39, 1)
        per_question = 20 + 2 + 8 + 3 + 8  # the reply's limit; 7 and 10 or 11 characters; two messages
        assert 39 * per_question <= estimate.tokens <= 39 * (per_question + 2)
        with pytest.raises(UserError, match=r"39 requests, about 1,\d{3} tokens.*llm.max_cost_tokens allows 1,000"):
            client([question(i) for i in range(40)])
        assert len(server.requests) == 1


def test_no_key_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE)
    with llm_server(lambda *_: Answer("ok")) as server:
        assert make_client(server, tmp_path)([question(0)])[0].text == "ok"
        assert server.keys == ["Bearer none"]


def test_the_key_of_the_cache_depends_on_model_parameters_and_messages(tmp_path: Path) -> None:
    q = question(0)
    others = [
        hash_question(question(1), model="stub"),
        hash_question(q._replace(seed=1), model="stub"),
        hash_question(q._replace(max_tokens=21), model="stub"),
        hash_question(q, model="other"),
    ]
    assert len({hash_question(q, model="stub"), *others}) == 5
    cache = ReplyCache(tmp_path / "a" / "b.jsonl", model="stub")
    cache.add(q, "täxt\n", tokens=3)
    assert ReplyCache(tmp_path / "a" / "b.jsonl", model="stub").get(q) == "täxt\n"
    assert ReplyCache(tmp_path / "a" / "b.jsonl", model="other").get(q) is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be kept there"):
        ReplyCache(tmp_path / "folder", model="stub")
