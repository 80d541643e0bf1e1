"""The whole use of an LLM against an endpoint on this machine: interrupted, resumed, and too expensive."""

from pathlib import Path
from typing import Any

import pytest

from crux.config.errors import UserError
from crux.sae.llm.asking import Message, Question
from crux.sae.llm.client import LlmClient
from crux.sae.llm.whole_harvest import explain_harvest
from crux.sae.llm_options import Protocol
from crux.sae.reading.harvest import Harvest
from tests.support.known_latents import HARVEST, decode, know, make_side
from tests.support.llm_server import Answer, StubServer, llm_server


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def run(server: StubServer, cache: Path, said: list[str], *, harvest: Harvest = HARVEST, max_cost_tokens: int = 10**6):
    client = LlmClient(
        base_url=server.url, model="stub", api_key_variable="CRUX_TEST_LLM_KEY", concurrency=4, timeout=10.0,
        max_retries=1, max_cost_tokens=max_cost_tokens, cache=cache / "replies.jsonl",
    )  # fmt: skip
    return explain_harvest(
        harvest, client=client, decode=decode, protocol=Protocol.delphi, max_latents=4, seed=0, say=said.append
    )


def answer_known(body: dict[str, Any]) -> str:
    messages = tuple(Message(m["role"], m["content"]) for m in body["messages"])
    return know(Question(messages, body["max_tokens"], body["seed"]))


def test_an_interrupted_run_is_resumed_with_no_repeated_request(tmp_path: Path) -> None:
    said: list[str] = []
    with llm_server(lambda body, _: Answer(answer_known(body))) as server:
        whole = run(server, tmp_path / "whole", said)
        n_requests = len(server.requests)
        assert len({str(body) for body in server.requests}) == n_requests
    assert whole.summary["detection"] == whole.summary["fuzzing"] == 1
    assert (whole.summary["n_chosen"], whole.summary["n_too_rare"]) == (4, 0)
    assert f"stub explains 4 latents: {n_requests} requests, about" in said[0]

    seen = 0

    def answer_twenty(body: dict[str, Any], earlier: int) -> Answer:
        nonlocal seen
        seen += 1
        return Answer(answer_known(body), hang_up=seen > 20)

    with llm_server(answer_twenty) as server, pytest.raises(UserError, match="replies are kept"):
        run(server, tmp_path / "cut", said)
    kept = len((tmp_path / "cut" / "replies.jsonl").read_text().splitlines())
    assert 15 <= kept <= 20
    with llm_server(lambda body, _: Answer(answer_known(body))) as server:
        resumed = run(server, tmp_path / "cut", said)
        assert len(server.requests) == n_requests - kept
    assert f"{n_requests - kept} requests, about" in said[-1]
    assert f"{kept} replies are in the cache" in said[-1]
    assert resumed.table.equals(whole.table)
    with llm_server(lambda *_: Answer(None, 500, b"{}")) as server:  # replayed without a request
        assert run(server, tmp_path / "cut", said).table.equals(whole.table)
        assert server.requests == []


def test_a_run_that_is_too_expensive_makes_no_request(tmp_path: Path) -> None:
    said: list[str] = []
    with llm_server(lambda body, _: Answer(answer_known(body))) as server:
        with pytest.raises(UserError, match=r"llm\.max_cost_tokens allows 1,000"):
            run(server, tmp_path, said, max_cost_tokens=1000)
        assert server.requests == []
    assert len(said) == 1


def test_a_text_that_is_too_short_is_one_line(tmp_path: Path) -> None:
    few = HARVEST._replace(held_out=make_side(1, n_windows=2))
    with (
        llm_server(lambda *_: Answer("ok")) as server,
        pytest.raises(UserError, match="no latent fires in enough passages"),
    ):
        run(server, tmp_path, [], harvest=few)
