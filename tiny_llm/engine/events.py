"""The events of the engine: the scheduler writes a record of each change, and all views read them.

kind     what happened                                    blocks                start, tokens
pool     the scheduler was made (note: its settings)      -                     block size, number of blocks
arrival  a request arrived                                -                     0, length of the prompt
admit    a sequence was admitted (note: why its cached    shared blocks         0, tokens in the shared blocks
         prefix is not longer)
share    a running sequence reused blocks that were       reused blocks         position, tokens in the blocks
         computed since its admission
chunk    a sequence got a share of the next step; a       newly taken blocks    position, length of the share
         decode has 1 token
load     blocks were read from disk (note: the fault)     loaded blocks         position, tokens in the blocks
branch   a beam took over another beam's tokens (note:    its new block table   0, tokens in the blocks
         the other beam)
copy     a shared block was copied before a write         source, target        -
step     a step was computed                              -                     blocks in use, tokens in the step
verify   drafted tokens were verified (note: JSON, the    the nodes that were   position of the first, how many
         tokens and each one's parent)                    right
token    a token was sampled                              -                     its position, 1
keep     a sequence's blocks were put into the prefix     parent (-1: none),    position, tokens in the blocks
         tree                                             then kept blocks
preempt  a sequence lost its blocks and waits again       lost blocks           0, tokens to compute again
evict    kept blocks were freed (note: the fault)         freed blocks          -
finish   a sequence ended (note: the reason)              released blocks       0, tokens generated
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from tiny_llm.config.fields import require

KINDS = frozenset("pool arrival admit share load branch chunk copy step verify token keep preempt evict finish".split())


@dataclass(frozen=True)
class Event:
    """One change in the engine. `time` is in seconds on the scheduler's clock, `step` the number of the step."""

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
        """Return the event as one line of JSON, without the fields that have their default."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return json.dumps(given, ensure_ascii=False)


class JsonLines:
    """Writes each event to a stream as a line of JSON. The caller closes the stream."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __call__(self, event: Event) -> None:
        self.stream.write(event.line() + "\n")


class Guarded:
    """Calls `emit` with each event. Its first error becomes a warning, later ones are ignored; requests go on."""

    def __init__(self, emit: Callable[[Event], None]):
        self.emit, self._told = emit, False

    def __call__(self, event: Event) -> None:
        try:
            self.emit(event)
        except BaseException as error:  # SystemExit too: a callback must not end the engine
            if not self._told:
                self._told = True
                message = f"emit: {self.emit!r} raised {error!r} at a {event.kind} event; events may be missing"
                warnings.warn(message, RuntimeWarning, stacklevel=2)


def read(path: Path) -> list[Event]:
    """Read the events of a log. Raises ValueError, with the line's number, for a line that is not an event."""
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
        raise ValueError(f"{place}: expected JSON, found {line!r:.40}; record the log again") from error
    require(isinstance(found, dict), f"{place}: expected an object, found {line:.40}")
    for name, value in found.items():
        require(name in _TYPES, f"{place}: unknown field {name!r}")
        require(isinstance(value, _TYPES[name]), f"{place}: {name}: unexpected value {value!r:.40}")
    require(found.get("kind") in KINDS and "time" in found, f"{place}: expected a time and a known kind")
    blocks = found.pop("blocks", [])
    require(all(isinstance(block, int) for block in blocks), f"{place}: blocks: expected numbers")
    return Event(**found, blocks=tuple(blocks))
