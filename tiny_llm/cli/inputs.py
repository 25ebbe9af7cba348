"""Text that comes from outside: arguments, files and stdin. What is no text, or has no end, is refused."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TextIO

LARGEST = 16 * 2**20  # characters: more than any model's context holds, and little memory
ESCAPED = 0xDC00  # what Python adds to a byte that is no text, to keep it in a text


def text_of(text: str, source: str) -> str:
    """`text` as Unicode. Raises ValueError naming `source` and the first byte that is no UTF-8.

    An argument is read again as UTF-8 where the system's encoding could not decode it, as with LC_ALL=C.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        with suppress(UnicodeError):
            return os.fsencode(text).decode("utf-8")
        code = ord(text[error.start]) - ESCAPED
        found = f"the byte 0x{code:02x}" if 0x80 <= code <= 0xFF else "half of a surrogate pair"
        raise ValueError(f"{source}: expected UTF-8 text, found {found} as character {error.start + 1}") from None
    return text


def check_text(text: str, source: str) -> None:
    """Raise ValueError naming `source` for a name or path that is no Unicode; its own bytes stay as they are."""
    text_of(text, source)


def read_stream(stream: TextIO, source: str) -> str:
    """All of a stream. Raises ValueError for what is no text or longer than LARGEST, OSError for what can't be read."""
    with _named(source):
        text = stream.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"{source}: expected at most {LARGEST:,} characters, found more")
    return text_of(text, source)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Let an OSError name what could not be read."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or source) from error


def read_file(path: Path, source: str = "") -> str:
    """A file's text without a byte order mark, with \\n at the end of its lines. Raises as `read_stream`."""
    if "\0" in str(path):
        raise ValueError(f"{source or path!s}: expected the name of a file, found a NUL character in it")
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        return read_stream(file, source or str(path))


def lines_of(stream: TextIO) -> Iterator[str]:
    """Lines of stdin without their ends. Raises ValueError for one beyond LARGEST: perhaps it has no end."""
    for number in count(1):
        with _named("stdin"):
            line = stream.readline(LARGEST + 1)
        if not line:
            return
        if len(line) > LARGEST:
            raise ValueError(f"line {number}: expected at most {LARGEST:,} characters, found more")
        yield line.removesuffix("\n")
