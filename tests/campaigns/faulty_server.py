"""An MLflow server on this machine behind a proxy that refuses, hangs, answers with errors or loses answers on command."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

Mode = Literal["pass", "refuse", "hang", "500", "lose"]
"""What the proxy does: pass everything on; accept no connection; never answer; answer status 500; pass requests on and lose answers."""

ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfail"


class FaultyServer(NamedTuple):
    """A running server and its proxy."""

    address: str
    """Address of the proxy."""
    behind: str
    """Address of the server itself."""
    mode_file: Path
    server: int
    """Process id of the server."""

    def set_mode(self, mode: Mode) -> None:
        """Change what the proxy does, also to connections that are open, and wait until it does."""
        new = self.mode_file.with_suffix(".new")
        new.write_text(mode)
        new.replace(self.mode_file)
        time.sleep(0.05)


@contextmanager
def faulty_server(folder: Path) -> Iterator[FaultyServer]:
    """Start a server, with its database in a folder, and its proxy; stop both at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = [free_port(), free_port()]
    line = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(ports[0]), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept"),
    ]  # fmt: skip
    mode_file = folder / "mode"
    mode_file.write_text("pass")
    with (folder / "server.log").open("w") as log:
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        server = subprocess.Popen(line, stdout=log, stderr=log, env=environment, start_new_session=True)
        proxy = subprocess.Popen(
            [sys.executable, __file__, str(ports[1]), str(ports[0]), str(mode_file), str(server.pid)],
            start_new_session=True,
        )
        try:
            wait_for_port(ports[0], server)
            wait_for_port(ports[1], proxy)
            addresses = [f"http://127.0.0.1:{port}" for port in ports]
            yield FaultyServer(addresses[1], addresses[0], mode_file, server.pid)
        finally:
            for process in (server, proxy):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGCONT)
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def free_port() -> int:
    """Return a port of this machine that is not in use."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process accepts connections at a port."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.2)
    raise RuntimeError(f"{process.args} does not start")


class Proxy:
    """A proxy of one thread: pairs of a client's connection and the server's. It ends, and the server with it, if the campaign is killed.

    Args:
        port: port of the proxy.
        server: port of the server.
        process: process id of the server.
    """

    def __init__(self, port: int, server: int, mode_file: Path, process: int) -> None:
        self.port, self.server, self.mode_file, self.process = port, server, mode_file, process
        self.parent = os.getppid()
        self.wait = selectors.DefaultSelector()
        self.partner: dict[socket.socket, socket.socket] = {}
        self.clients: set[socket.socket] = set()
        self.listener: socket.socket | None = None

    def run(self) -> None:
        while os.getppid() == self.parent:
            mode = self.mode_file.read_text()
            if mode == "refuse" and self.listener is not None:
                self.wait.unregister(self.listener)
                self.listener.close()
                self.listener = None
                for client in list(self.clients):
                    self.close(client)
            elif mode != "refuse" and self.listener is None:
                self.listener = socket.create_server(("127.0.0.1", self.port), backlog=50)
                self.wait.register(self.listener, selectors.EVENT_READ)
            for key, _ in self.wait.select(timeout=0.02):
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self.listener:
                    self.accept()
                elif source in self.partner:
                    self.pass_on(source, self.mode_file.read_text())
        with suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)

    def accept(self) -> None:
        assert self.listener is not None
        client, _ = self.listener.accept()
        server = socket.create_connection(("127.0.0.1", self.server))
        self.partner |= {client: server, server: client}
        self.clients.add(client)
        for end in (client, server):
            self.wait.register(end, selectors.EVENT_READ)

    def pass_on(self, source: socket.socket, mode: str) -> None:
        try:
            content = source.recv(1 << 16)
        except OSError:
            content = b""
        if not content:
            self.close(source)
        elif source in self.clients and mode == "500":
            with suppress(OSError):
                source.sendall(ERROR)
            self.close(source)
        elif mode == "hang" or (mode == "lose" and source not in self.clients):
            if mode == "lose":
                self.close(source)
        else:
            try:
                self.partner[source].sendall(content)
            except OSError:
                self.close(source)

    def close(self, end: socket.socket) -> None:
        for one in (end, self.partner[end]):
            self.wait.unregister(one)
            self.partner.pop(one)
            self.clients.discard(one)
            one.close()


if __name__ == "__main__":
    Proxy(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])).run()
