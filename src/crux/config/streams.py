"""Standard output and standard error that never fail, so that no terminal, pipe or full disk can end a run.

`protect_streams` replaces both at the start of a process. Characters that the encoding lacks are written as ASCII. When nobody reads any
more (`| head -1`), the disk is full, or the terminal is gone, the rest of the output is dropped. A stream that was closed (`>&-`) becomes
/dev/null; otherwise the next file that the process opens would take its place and receive the output.
"""

import io
import os
import select
import sys
from contextlib import suppress

from crux.config.printing import ERRORS


class ForgivingFile(io.FileIO):
    """A file descriptor to write to, on which no write fails: after an error, everything is dropped."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all bytes, or drop them if they cannot be written; return their number."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            try:
                written = super().write(rest)
            except OSError:
                self._drop_output()
                return size
            if written is None:  # the reader of a pipe that does not block is slow
                select.select([], [self.fileno()], [])
            else:
                rest = rest[written:]
        return size

    def _drop_output(self) -> None:
        """Connect the descriptor to /dev/null, so that output of libraries in C and of child processes is dropped too."""
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, self.fileno())
        os.close(devnull)


def protect_streams() -> None:
    """Replace standard output and standard error by streams that never fail; further calls change nothing."""
    _fill_closed_descriptors()
    _protect("stdout", 1)
    _protect("stderr", 2)


def _fill_closed_descriptors() -> None:
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            devnull = os.open(os.devnull, os.O_RDWR)
            if devnull != number:
                os.dup2(devnull, number)
                os.close(devnull)


def _protect(name: str, number: int) -> None:
    """Replace a stream of `sys`, unless it is protected, or writes to another place than the descriptor, as in a test or a notebook."""
    stream = getattr(sys, name)
    if stream is None:  # it was closed when Python started
        setattr(sys, name, _open(number, encoding="utf-8", line_buffering=True, write_through=False))
        return
    if not isinstance(stream, io.TextIOWrapper) or isinstance(_raw(stream), ForgivingFile):
        return
    try:
        if stream.fileno() != number:
            return
    except (OSError, ValueError):  # it has no descriptor, or is closed
        return
    with suppress(OSError):  # the protected stream will meet the same error
        stream.flush()
    protected = _open(
        number,
        encoding=stream.encoding,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    setattr(sys, name, protected)


def _raw(stream: io.TextIOWrapper) -> object:
    return getattr(stream.buffer, "raw", stream.buffer)


def _open(number: int, *, encoding: str, line_buffering: bool, write_through: bool) -> io.TextIOWrapper:
    raw = ForgivingFile(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if write_through else io.BufferedWriter(raw),  # pyright: ignore[reportArgumentType] - `python -u` writes through
        encoding=encoding,
        errors=ERRORS,
        newline="\n",
        line_buffering=line_buffering,
        write_through=write_through,
    )
