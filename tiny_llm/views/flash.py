"""FlashAttention step by step: which tile of scores is computed, and what is kept of it. (arXiv:2205.14135)"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing, number

CELL, LEFT, TOP = 22, 84, 44


class TileStep(NamedTuple):
    """One tile of scores: queries from `first`, keys from `begin`. `state` has each query's (maximum, sum), `kept` by
    how much what it had shrank; `output` its weighted mean of the values, whose row i is the number i."""

    first: int
    begin: int
    state: list[tuple[float, float]]
    kept: list[float]
    output: list[float]


def scores_of(tokens: int, seed: int) -> list[list[float]]:
    """Random scores with one decimal, so that the steps can be computed along by hand."""
    rows = mx.round(20 * mx.random.normal((tokens, tokens), key=mx.random.key(seed))) / 10
    found: list[list[float]] = rows.tolist()  # type: ignore[assignment]
    return found


def visible(query: int, key: int, window: int) -> bool:
    return key <= query and (not window or key > query - window)


def steps(tokens: int, queries: int, keys: int, window: int = 0, seed: int = 0) -> Iterator[TileStep]:
    """The tiles in the order in which one head's threadgroups take them; those that nobody sees are left out.

    Raises ValueError for sizes below 1 and a negative window.
    """
    for name, value, least in (
        ("tokens", tokens, 1),
        ("queries", queries, 1),
        ("keys", keys, 1),
        ("window", window, 0),
    ):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, found {value}")
    scores = scores_of(tokens, seed)
    for first in range(0, tokens, queries):
        rows = range(first, min(first + queries, tokens))
        state, mix = [(-math.inf, 0.0) for _ in rows], [0.0 for _ in rows]
        for begin in range(max(0, first - window + 1) if window else 0, rows[-1] + 1, keys):
            kept = [1.0 for _ in rows]
            for i, query in enumerate(rows):
                seen = [key for key in range(begin, min(begin + keys, tokens)) if visible(query, key, window)]
                top = max([state[i][0], *(scores[query][key] for key in seen)])
                if top == -math.inf:
                    continue  # no key yet
                p = {key: math.exp(scores[query][key] - top) for key in seen}
                kept[i] = math.exp(state[i][0] - top)
                state[i] = (top, state[i][1] * kept[i] + sum(p.values()))
                mix[i] = mix[i] * kept[i] + sum(key * share for key, share in p.items())
            yield TileStep(
                first, begin, list(state), kept, [m / s if s else 0.0 for m, (_, s) in zip(mix, state, strict=True)]
            )


def draw(tokens: int, queries: int, keys: int, window: int = 0, seed: int = 0, name: str = "flash") -> list[Drawing]:
    """A picture for each step: the scores that are, were and will be computed, and what the tile's queries keep."""
    taken = list(steps(tokens, queries, keys, window, seed))
    return [frame(f"{name}-{at + 1}", at, taken, tokens, queries, keys, window) for at in range(len(taken))]


def frame(name: str, at: int, taken: list[TileStep], tokens: int, queries: int, keys: int, window: int) -> Drawing:
    step = taken[at]
    rows = range(step.first, min(step.first + queries, tokens))
    last = min(step.begin + keys, tokens) - 1
    state = "; ".join(
        f"query {query}: maximum {number(top)}, sum {number(total)}, output {number(out)}"
        for query, (top, total), out in zip(rows, step.state, step.output, strict=True)
        if total
    )
    alt = (
        f"Step {at + 1} of {len(taken)}: queries {rows[0]} to {rows[-1]} meet keys {step.begin} to {last}. {state}. "
        f"Only this tile's {queries} × {keys} scores exist, of {tokens} × {tokens}."
    )
    drawing = Drawing(name, LEFT + CELL * tokens + 300, TOP + CELL * tokens + 20, f"FlashAttention, step {at + 1}", alt)
    done = {(s.first, s.begin) for s in taken[:at]}
    for query in range(tokens):
        drawing.text(LEFT - 8, TOP + CELL * (query + 0.5), f"query {query}", 10, "end", GREY)
        drawing.text(LEFT + CELL * (query + 0.5), TOP - 10, str(query), 10, colour=GREY)
        for key in range(tokens):
            owner = next((s for s in taken if 0 <= query - s.first < queries and 0 <= key - s.begin < keys), None)
            now = owner is step
            fill = AMBER if now else GREEN if owner and (owner.first, owner.begin) in done else BLUE
            share = 0.0 if owner is None else (0.55 if now else 0.3) if visible(query, key, window) else 0.05
            drawing.rect(LEFT + CELL * key, TOP + CELL * query, CELL - 2, CELL - 2, fill, share)
    drawing.text(LEFT + CELL * tokens / 2, 14, "keys", 11, colour=GREY)
    kept_of(drawing, step, rows, LEFT + CELL * tokens + 20)
    return drawing


def kept_of(drawing: Drawing, step: TileStep, rows: range, x: float) -> None:
    """The numbers beside the tile: all that a query carries from one tile to the next."""
    for column, words in enumerate(("maximum", "sum", "kept", "output")):
        drawing.text(x + 30 + 66 * column, TOP - 10, words, 11, bold=True)
    for query, (top, total), kept, out in zip(rows, step.state, step.kept, step.output, strict=True):
        y = TOP + CELL * (query + 0.5)
        shown = ("-∞" if top == -math.inf else number(top), number(total), number(kept), number(out))
        for column, words in enumerate(shown):
            drawing.text(x + 30 + 66 * column, y, words, 11)
