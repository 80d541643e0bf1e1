"""Chromium without a window, driven over its debugging pipe: JSON messages that end with a zero byte."""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

TIMEOUT_S = 60


def find_chromium() -> str | None:
    """Return the path of the Chromium of this machine; None if there is none."""
    return next((path for name in PROGRAMS if (path := shutil.which(name)) is not None), None)


class Tab:
    """A page in the browser. It records every request, every message on the console and every uncaught exception."""

    def __init__(self, program: str, profile: Path) -> None:
        into_browser, to_browser = os.pipe()
        from_browser, out_of_browser = os.pipe()
        child_in, child_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (into_browser, out_of_browser))
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars")
        command = [program, *flags, *quiet, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        null = os.open(os.devnull, os.O_RDWR)
        self._pid = os.posix_spawn(
            program, command, os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, child_in, 3), (os.POSIX_SPAWN_DUP2, child_out, 4),
                (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2),
            ],
            setpgroup=0,
        )  # fmt: skip
        for descriptor in (into_browser, out_of_browser, child_in, child_out, null):
            os.close(descriptor)
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self.requests: list[str] = []
        self.errors: list[str] = []
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._record(answer)

    def open(self, url: str) -> None:
        """Open an address in a page that is new, and wait until its script says that it is ready."""
        self.send("Page.navigate", url="about:blank")
        self.requests.clear()
        self.errors.clear()
        self.send("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.ready !== undefined")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression; of a promise, what it resolves to."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + TIMEOUT_S
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"{expression} was not true in time; {self.errors}"
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """Press a key such as ArrowDown."""
        code = {"ArrowDown": 40, "ArrowUp": 38}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Type a text where the cursor is."""
        self.send("Input.insertText", text=text)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the left button of the mouse."""
        steps = [("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)]
        for kind, (x, y) in steps:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def resize(self, width: int, height: int) -> None:
        """Set the size of the page on the screen."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def emulate(self, media: str = "", features: Mapping[str, str] | None = None) -> None:
        """Choose a medium such as print, and features such as prefers-color-scheme."""
        chosen = [{"name": name, "value": value} for name, value in (features or {}).items()]
        self.send("Emulation.setEmulatedMedia", media=media, features=chosen)

    def save_screenshot(self, path: Path) -> None:
        """Write what is on the screen to a PNG file."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser and all its processes."""
        for descriptor in (self._to, self._from):
            os.close(descriptor)
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], TIMEOUT_S)
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, "Chromium does not answer"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _record(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.errors.append(json.dumps(parameters["args"])[:500])
        elif event.get("method") == "Log.entryAdded":
            self.errors.append(parameters["entry"]["text"])


@contextmanager
def open_browser(profile: Path) -> Iterator[Tab]:
    """Yield a tab of a new browser, which is closed at the end of the block."""
    program = find_chromium()
    assert program is not None
    tab = Tab(program, profile)
    try:
        yield tab
    finally:
        tab.close()
