"""The process around a command: its three streams and its signals, and the folder of what outlives it."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, RawIOBase, TextIOWrapper
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from tiny_llm._start import INTERRUPTED

IMPORTING = "<frozen importlib._bootstrap>"


def state_dir() -> Path:
    """Return the folder for the chat's history and for sessions: tiny-llm in XDG_STATE_HOME or ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")) / "tiny-llm"


class OutputEnd(SystemExit):
    """Nothing more can be written to stdout. No handler of errors keeps the command going."""

    def __init__(self, error: OSError):
        super().__init__(1)
        self.error = error


class Stdout(TextIOWrapper):
    """stdout: a write that fails ends the command."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputEnd(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputEnd(error) from error


class Stderr(TextIOWrapper):
    """stderr: what can't be written there is dropped, and the command goes on."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError:
            point_to_nothing(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            point_to_nothing(self)


class ClosedInput(RawIOBase):
    """stdin of a process that was started without one."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OSError(errno.EBADF, "is closed, and there is nothing to read", "stdin")


def point_to_nothing(stream: TextIO) -> None:
    """Let what is still written to `stream`, by the interpreter's last flush too, go to /dev/null."""
    with suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        stream.flush()


@contextmanager
def prepared_streams() -> Iterator[None]:
    """Within it stdin, stdout and stderr exist and take any text.

    A character that a stream's encoding lacks is written as an escape such as \\xe9. Piped input is read as UTF-8; a
    byte that is none stays as half of a surrogate pair, for the reader to refuse. Raises ValueError where stdout is
    closed: a command without its output is of no use.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    if None in before:
        _fill_descriptors()
    sys.stdin, sys.stderr = _input(sys.stdin), _wrapped(Stderr, sys.stderr)
    sys.stdout = _wrapped(Stdout, sys.stdout)
    try:
        if before[1] is None:
            raise ValueError(
                "stdout is closed, and there is no place for the output: send it to a file or to /dev/null"
            )
        yield
    finally:
        for made, original in zip((sys.stdout, sys.stderr), before[1:], strict=True):
            if made is not original and isinstance(made, Stdout | Stderr):
                made.detach()  # else the stream below is closed with its wrapper
        sys.stdin, sys.stdout, sys.stderr = before


def _fill_descriptors() -> None:
    """Open /dev/null in the place of each closed stream, before a file gets its number and a library writes there."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # the lowest number that is free
        os.set_inheritable(number, True)
    os.close(number)


def _input(stream: TextIO | None) -> TextIO:
    if stream is None:
        return TextIOWrapper(BufferedReader(ClosedInput()), encoding="utf-8")
    if isinstance(stream, TextIOWrapper) and not stream.isatty():
        stream.reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline=None)
    return stream


def _wrapped(kind: type[Stdout] | type[Stderr], stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, TextIOWrapper):
        return stream
    lines, through = stream.line_buffering, stream.write_through
    return kind(stream.buffer, stream.encoding, "backslashreplace", line_buffering=lines, write_through=through)


@contextmanager
def handled_signals() -> Iterator[None]:
    """Within it Ctrl-C raises KeyboardInterrupt, SIGTERM and SIGHUP SystemExit, so that a command can clean up.

    A signal that the process was told to ignore stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {signal.SIGINT: _interrupt, signal.SIGTERM: _terminate, signal.SIGHUP: _terminate}
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] not in (signal.SIG_IGN, None):
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            if earlier is not None:
                signal.signal(number, earlier)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


def _terminate(number: int, frame: FrameType | None) -> None:
    if _importing(frame):
        os._exit(128 + number)
    raise SystemExit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: an exception there may be lost, or turned into another."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False
