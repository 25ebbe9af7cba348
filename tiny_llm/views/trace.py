"""An event log as a Chrome trace, for ui.perfetto.dev or chrome://tracing: a row for each sequence, counters above."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tiny_llm.engine.events import Event

Slice = dict[str, Any]


def chrome_trace(events: Sequence[Event]) -> str:
    """JSON of the trace event format: what each sequence does in each step, how it waits, and the pool's use."""
    began = min((e.time for e in events if e.kind != "pool"), default=0.0)
    ends = {e.step: e.time for e in events if e.kind == "step"}
    rows: dict[tuple[str, int], int] = {}
    slices: list[Slice] = []
    waits: dict[tuple[str, int], float] = {}
    for e in events:
        whose = (e.request, e.sequence)
        if e.request and whose not in rows:
            rows[whose] = len(rows) + 1
            name = e.request + (f" #{e.sequence}" if e.sequence else "")
            slices.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": rows[whose], "args": {"name": name}})
        common = {"pid": 1, "tid": rows.get(whose, 0), "ts": _micro(e.time - began)}
        if e.kind in ("arrival", "preempt"):
            waits[whose] = e.time
        if e.kind == "chunk":
            name = "decode" if e.tokens == 1 else f"chunk of {e.tokens}"
            slices.append(_slice(common, name, ends.get(e.step, e.time) - e.time, start=e.start, step=e.step))
        elif e.kind == "step":
            slices.append({**common, "ph": "C", "tid": 0, "name": "tokens in a step", "args": {"tokens": e.tokens}})
        elif e.kind in ("admit", "finish") and whose in waits:
            since = waits.pop(whose)
            slices.append(_slice({**common, "ts": _micro(since - began)}, "waits", e.time - since))
        if e.kind in ("preempt", "evict", "copy", "share", "load"):
            arguments = {"blocks": list(e.blocks), "note": e.note}
            slices.append({**common, "ph": "i", "s": "t", "name": e.kind, "args": arguments})
    slices += _use(events, began)
    return json.dumps({"traceEvents": slices, "displayTimeUnit": "ms"}, ensure_ascii=False)


def _slice(common: Slice, name: str, seconds: float, **arguments: object) -> Slice:
    return {**common, "ph": "X", "name": name, "dur": _micro(seconds), "args": arguments}


def _micro(seconds: float) -> float:
    return round(seconds * 1e6, 3)


def _use(events: Iterable[Event], began: float) -> Iterable[Slice]:
    """A counter: the sequences that run, after each event that changes it."""
    running: set[tuple[str, int]] = set()
    for e in events:
        if e.kind in ("admit", "preempt", "finish"):
            running = running | {(e.request, e.sequence)} if e.kind == "admit" else running - {(e.request, e.sequence)}
            counter = {"ph": "C", "pid": 1, "tid": 0, "ts": _micro(e.time - began)}
            yield {**counter, "name": "running", "args": {"sequences": len(running)}}
