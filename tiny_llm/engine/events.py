"""What happened in the engine, one record for each happening: written by the scheduler, read by all views.

kind     what happened                                         blocks                    start, tokens
pool     the scheduler begins (note: its settings)             -                         block size, number of blocks
arrival  a request arrives                                     -                         0, length of the prompt
admit    a sequence runs (note: why its prefix is no longer)   shared ones               0, tokens found in them
share    a running sequence takes over blocks known by now     those                     tokens before, tokens found
chunk    a sequence's part of a step; 1 token is a decode      newly taken ones          tokens before, length
load     blocks are read from disk (note: a fault)             those                     tokens before, tokens in them
branch   a beam goes on from another (note: which)             its whole table           0, tokens in them
copy     copy-on-write                                         source, target            -
step     a step has been computed                              -                         0, tokens in it
token    a token is sampled                                    -                         its position, 1
keep     the prefix tree keeps blocks of a sequence            above (or -1), then kept  tokens before, tokens kept
preempt  a sequence gives up its blocks and waits again        those                     0, tokens lost
evict    the prefix tree gives up blocks (note: a fault)       those                     -
finish   a sequence ends (note: why)                           those                     0, tokens generated
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from tiny_llm.config.fields import require

KINDS = frozenset("pool arrival admit share load branch chunk copy step token keep preempt evict finish".split())


@dataclass(frozen=True)
class Event:
    """One happening. `time` in seconds on the scheduler's clock, `step` the number of the step that it belongs to."""

    time: float
    kind: str
    step: int = 0
    request: str = ""
    sequence: int = 0
    start: int = 0
    tokens: int = 0
    blocks: tuple[int, ...] = ()
    note: str = ""

    def line(self) -> str:
        """As one line of JSON; what has its default is left out."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return json.dumps(given, ensure_ascii=False)


class JsonLines:
    """Writes each event that it is called with as a line; the stream is the caller's to close."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __call__(self, event: Event) -> None:
        self.stream.write(event.line() + "\n")


class Guarded:
    """Calls `emit` with each event; what it raises is a warning, the first time, and harms no request."""

    def __init__(self, emit: Callable[[Event], None]):
        self.emit, self._told = emit, False

    def __call__(self, event: Event) -> None:
        try:
            self.emit(event)
        except BaseException as error:  # a callback's SystemExit is no reason to end the engine either
            if not self._told:
                self._told = True
                message = f"emit: {self.emit!r} raised {error!r} at a {event.kind} event; events may be missing"
                warnings.warn(message, RuntimeWarning, stacklevel=2)


def read(path: Path) -> list[Event]:
    """The events of a log. Raises ValueError, with the line's number, for what is not one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    events = [_parse(line, f"{path.name}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    require(bool(events), f"{path.name}: expected events, found an empty file")
    return events


_TYPES = {"time": (float, int), "kind": (str,), "request": (str,), "note": (str,), "blocks": (list,)}
_TYPES |= dict.fromkeys(("step", "sequence", "start", "tokens"), (int,))


def _parse(line: str, place: str) -> Event:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: expected JSON, found something else: {error}") from error
    require(isinstance(found, dict), f"{place}: expected an object, found {line:.40}")
    for name, value in found.items():
        require(name in _TYPES, f"{place}: unknown field {name!r}")
        require(isinstance(value, _TYPES[name]), f"{place}: {name}: unexpected value {value!r:.40}")
    require(found.get("kind") in KINDS and "time" in found, f"{place}: expected a time and a known kind")
    blocks = found.pop("blocks", [])
    require(all(isinstance(block, int) for block in blocks), f"{place}: blocks: expected numbers")
    return Event(**found, blocks=tuple(blocks))
