"""An audit hook that records what a foreign file must never cause: processes, pickled classes, connections, written files."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "socket.connect", "urllib.Request", "os.remove",
    "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.chown", "os.truncate", "shutil.rmtree", "shutil.move",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class _Audit:
    """The state of the hook, which cannot be removed once it is installed."""

    installed = False
    events: list[str] | None = None
    """What was observed; None while nothing is recorded."""


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _Audit.events is None:
        return
    if event in _FORBIDDEN:
        _Audit.events.append(f"{event}{arguments!r}"[:200])
    if event == "open":
        path, _, flags = arguments
        # an unnamed temporary file is opened by the name of its folder
        if isinstance(flags, int) and flags & _WRITING and path != tempfile.gettempdir() and path != os.devnull:
            _Audit.events.append(f"open({path!r}) for writing"[:200])


@contextmanager
def recording() -> Iterator[list[str]]:
    """Yield a list to which what happens within the block is added."""
    if not _Audit.installed:
        sys.addaudithook(_hook)
        _Audit.installed = True
    _Audit.events = events = []
    try:
        yield events
    finally:
        _Audit.events = None
