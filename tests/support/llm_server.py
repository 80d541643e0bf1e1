"""An OpenAI-compatible endpoint on this machine, which answers, refuses, delays or hangs up as a test wants."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the endpoint does with a request."""

    text: str | None = "[1]"
    """Content of the message; None: `body` is sent as it is."""
    status: int = 200
    body: bytes = b""
    delay: float = 0.0
    """Seconds before the answer."""
    hang_up: bool = False
    """Close the connection without an answer."""


class StubServer(NamedTuple):
    """A running endpoint."""

    url: str
    """The base URL, ending in /v1."""
    requests: list[dict[str, Any]]
    """The bodies of all requests, in the order of their arrival."""
    keys: list[str]
    """Their Authorization headers."""
    most_at_once: list[int]
    """One number: the most requests that were open at the same time."""


@contextmanager
def llm_server(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[StubServer]:
    """Run an endpoint; `answer` gets the body of a request and the number of earlier requests with the same body."""
    requests: list[dict[str, Any]] = []
    keys: list[str] = []
    open_now, most_at_once, lock = [0], [0], Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert self.path == "/v1/chat/completions"
            with lock:
                earlier = requests.count(body)
                requests.append(body)
                keys.append(self.headers["authorization"])
                open_now[0] += 1
                most_at_once[0] = max(most_at_once[0], open_now[0])
            try:
                found = answer(body, earlier)
                time.sleep(found.delay)
                self._send(found)
            finally:
                with lock:
                    open_now[0] -= 1

        def _send(self, found: Answer) -> None:
            if found.hang_up:
                self.close_connection = True
                self.connection.close()
                return
            content = found.body if found.text is None else json.dumps(complete(found.text)).encode()
            try:
                self.send_response(found.status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client has given up
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a connection that was closed on purpose

    server = Server(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield StubServer(f"http://127.0.0.1:{server.server_address[1]}/v1", requests, keys, most_at_once)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def complete(text: str) -> dict[str, Any]:
    """Return a chat completion with this text, as an endpoint sends it."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stub",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40},
    }
