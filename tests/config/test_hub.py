"""The check that the Hugging Face hub, or the proxy in front of it, can be reached."""

import socket

import pytest

from crux.config.hub import explain_unreachable_hub


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the proxies of this machine, and allow the hub, which all other tests forbid."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.mark.usefixtures("no_proxy")
def test_the_hub_or_its_proxy_takes_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert explain_unreachable_hub(seconds=5) is None
        monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
        monkeypatch.setenv("HTTPS_PROXY", address)
        assert explain_unreachable_hub(seconds=5) is None
    assert explain_unreachable_hub(seconds=5) == f"{address.removeprefix('http://')}: Connection refused"


@pytest.mark.usefixtures("no_proxy")
def test_with_an_offline_variable_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    assert explain_unreachable_hub(seconds=5) == "HF_HUB_OFFLINE is set"
