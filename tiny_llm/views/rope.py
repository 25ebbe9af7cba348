"""Rotary positions seen: how each pair turns, and that a score depends on the distance alone."""

import math
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from tiny_llm.config import RopeConfig
from tiny_llm.model import rope
from tiny_llm.views.svg import AMBER, BLUE, GREY, HUES, Drawing, number

RADIUS, CELL, CLOCKS = 70.0, 34, 4


def turned_pairs(config: RopeConfig, head_dim: int, positions: Sequence[int]) -> list[list[tuple[float, float]]]:
    """Where `apply_rope` takes the vector (1, 0) of each pair at each position: D/2 lists of points."""
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"head_dim: expected an even number of at least 2, found {head_dim}")
    half = head_dim // 2
    x = mx.concatenate([mx.ones((len(positions), 1, half)), mx.zeros((len(positions), 1, half))], axis=-1)
    turned = cast(Any, _turn(config, x, positions)[:, 0].tolist())  # positions × D
    return [[(row[i], row[half + i]) for row in turned] for i in range(half)]


def scores(config: RopeConfig, q: Sequence[float], k: Sequence[float], length: int) -> list[list[float]]:
    """q at position t times k at position s, for all t and s below `length`: `length` rows."""
    positions = range(length)
    queries = _turn(config, mx.array([[list(q)]] * length, mx.float32), positions)[:, 0]
    keys = _turn(config, mx.array([[list(k)]] * length, mx.float32), positions)[:, 0]
    return cast(list[list[float]], (queries @ keys.T).tolist())


def pictures(config: RopeConfig, head_dim: int, length: int) -> list[Drawing]:
    """The rotation of the first pairs, and the scores of a query with an equal key."""
    if length < 1:
        raise ValueError(f"positions: expected at least 1, found {length}")
    pairs = turned_pairs(config, head_dim, range(length))[:CLOCKS]
    periods = [2 * math.pi * config.theta ** (2 * i / head_dim) for i in range(len(pairs))]
    vector = [1.0 / math.sqrt(head_dim)] * head_dim
    return [draw_rotation("rotation", pairs, periods), draw_scores("distance", scores(config, vector, vector, length))]


def _turn(config: RopeConfig, x: mx.array, positions: Sequence[int]) -> mx.array:
    return rope.apply_rope(x, rope.Rope(config, x.shape[-1]).at(mx.array(list(positions), mx.int32)))


def draw_rotation(name: str, pairs: Sequence[Sequence[tuple[float, float]]], periods: Sequence[float]) -> Drawing:
    """A circle for each pair, a hand for each position. `periods`: positions per full turn, one a pair."""
    span = 2 * RADIUS + 50
    alt = "; ".join(
        f"pair {i} turns by {math.degrees(2 * math.pi / period):.1f} degrees a position"
        for i, period in enumerate(periods)
    )
    alt = f"{len(pairs)} clocks, each with one hand for position 0 to {len(pairs[0]) - 1}: {alt}."
    drawing = Drawing(name, span * len(pairs) + 10, span + 40, "RoPE turns each pair at its own speed", alt)
    for i, points in enumerate(pairs):
        cx, cy = 5 + span * (i + 0.5), RADIUS + 42
        drawing.text(cx, 12, f"pair {i}", 13, bold=True)
        drawing.text(cx, 28, f"one turn in {number(periods[i])} positions", 11, colour=GREY)
        drawing.add("circle", cx=cx, cy=cy, r=RADIUS, fill="none", stroke="currentColor", stroke_opacity=0.4)
        for position, (a, b) in enumerate(points):
            end = (cx + a * RADIUS, cy - b * RADIUS)
            drawing.line([(cx, cy), end], HUES[position % len(HUES)], 2, arrow=True)
            drawing.text(cx + a * (RADIUS + 11), cy - b * (RADIUS + 11), str(position), 11)
    return drawing


def draw_scores(name: str, rows: Sequence[Sequence[float]]) -> Drawing:
    """The score of every query position with every key position up to its own: equal along each diagonal."""
    length = len(rows)
    by_distance = ", ".join(f"{number(rows[d][0])} at distance {d}" for d in range(length))
    alt = f"Triangle of scores, one for each query and key position; each diagonal holds one value: {by_distance}."
    drawing = Drawing(name, 70 + CELL * length, 56 + CELL * length, "The score depends on the distance alone", alt)
    top = max(abs(value) for row in rows for value in row) or 1.0
    drawing.text(60 + CELL * length / 2, 12, "position of the key", 11, colour=GREY)
    for t, row in enumerate(rows):
        y = 44 + CELL * t
        drawing.text(50, y + CELL / 2, f"q at {t}", 11, "end")
        drawing.text(60 + CELL * (t + 0.5), 32, str(t), 11)
        for s, value in enumerate(row[: t + 1]):
            fill, share = (BLUE if value >= 0 else AMBER), abs(value) / top
            tip = f"query at {t}, key at {s}: {value:.4f}"
            drawing.rect(60 + CELL * s, y, CELL, CELL, fill, 0.1 + 0.6 * share, tip=tip)
            drawing.text(60 + CELL * (s + 0.5), y + CELL / 2, number(value), 10)
    return drawing
