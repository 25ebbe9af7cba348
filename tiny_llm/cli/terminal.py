"""What may be written where: no escape codes unless a terminal that wants them is at the other end."""

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

CONTROLS = dict.fromkeys(code for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t")

LAST_COLUMN = 24  # characters of a table's last column at least


def styled(stream: TextIO) -> bool:
    """Whether `stream` is a terminal and the user has not asked for plain text (NO_COLOR, TERM=dumb)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def dim(text: str, stream: TextIO) -> str:
    return f"\x1b[2m{text}\x1b[0m" if text and styled(stream) else text


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """`text` in one of the terminal's eight colours, by the number of its escape code (31 red … 36 cyan)."""
    return f"\x1b[{colour}m{text}\x1b[0m" if text and styled(stream) else text


def printable(text: str, stream: TextIO) -> str:
    """`text` without control characters if a terminal would obey them; whole where it goes to a file or pipe."""
    return text.translate(CONTROLS) if stream.isatty() else text


def note(text: str) -> None:
    """A remark beside the output: on stderr, and only if somebody is looking."""
    if sys.stderr.isatty():
        print(dim(text, sys.stderr), file=sys.stderr)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Print aligned columns. A terminal wraps the last, and a narrow one what does not fit; nothing is cut off.

    A pipe gets each row as one line.
    """
    from rich.console import Console
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    for column in range(max(map(len, rows), default=0)):
        grid.add_column(no_wrap=column < len(rows[0]) - 1, overflow="fold")
    for row in rows:
        grid.add_row(*map(escaped, row))
    width = _table_width(rows) if sys.stdout.isatty() else 10_000
    console = Console(file=sys.stdout, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    sys.stdout.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())


def _table_width(rows: Sequence[Sequence[str]]) -> int:
    """The terminal's width, or what all columns but the last and a few characters of that take if it is more."""
    from rich.cells import cell_len

    columns = zip(*(row[:-1] for row in rows), strict=False)
    fixed = sum(max(map(cell_len, column)) + 2 for column in columns)
    return max(shutil.get_terminal_size().columns, fixed + LAST_COLUMN)


def escaped(text: str) -> str:
    """`text` with its control characters, line breaks among them, as escapes such as \\n."""
    return "".join(repr(c)[1:-1] if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 else c for c in text)


def print_json(data: Any) -> None:
    """Print `data` as one line of JSON that every program and every terminal can read.

    A number that JSON lacks (infinity, not a number) becomes null, and half of a surrogate pair U+FFFD. Where stdout is
    not UTF-8, other characters than ASCII are escaped.
    """
    utf_8 = (sys.stdout.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"
    print(json.dumps(_plain(data), ensure_ascii=not utf_8, allow_nan=False))


def _plain(data: Any) -> Any:
    """`data` without what JSON can't hold."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, str):
        return well_formed(data)
    if isinstance(data, Mapping):
        return {_plain(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(item) for item in data]
    return data


def well_formed(text: str) -> str:
    """`text` with U+FFFD in the place of each half of a surrogate pair, which is no character by itself."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def num_bytes_of(text: str) -> int:
    """Return the number of bytes in a text such as 500MB or 1.5 GB. Raises ValueError for another text."""
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]{0,2})\s*", text, re.IGNORECASE | re.ASCII)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise ValueError(
            f"expected bytes such as 500MB or 2GB (units: B, KB, MB, GB, in powers of 1000), found {text!r:.60}"
        )
    return int(float(found[1]) * unit)
