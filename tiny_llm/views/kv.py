"""What a KV cache costs as its text grows, and how a ring of slots goes round."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx

from tiny_llm.cache import memory, rotating
from tiny_llm.cache.quantized import PREFERRED
from tiny_llm.config import ModelConfig
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing, number

LEFT, TOP, WIDTH, HEIGHT, CELL = 64, 40, 430, 220, 34


class Curve(NamedTuple):
    """Bytes of one kind of cache at each number of tokens."""

    label: str
    colour: str
    points: list[tuple[int, int]]


def curves(config: ModelConfig, width: int, tokens: int, window: int) -> list[Curve]:
    """Kinds of cache from the first token to the last, by the memory model of `cache.memory`.

    Those in few bits are left out where no group size divides the heads.
    """
    if tokens < 1:
        raise ValueError(f"tokens: expected at least 1, found {tokens}")
    if window < 1:
        raise ValueError(f"window: expected at least 1, found {window}")
    groups = [size for size in PREFERRED if config.head_dim % size == 0]
    kinds = (
        (f"every token, {8 * width} bits", BLUE, None, None),
        ("8 bits", GREEN, 8, None),
        ("4 bits", AMBER, 4, None),
        (f"window {window:,}, {8 * width} bits", RED, None, window),
        (f"window {window:,}, 4 bits", GREY, 4, window),
    )
    counts = sorted({1, tokens, *range(memory.STEP, tokens, memory.STEP), *range(memory.STEP + 1, tokens, memory.STEP)})
    found = []
    for label, colour, bits, end in kinds:
        if bits is not None and not groups:
            continue
        slot = memory.bytes_per_slot(config, width, bits, *groups[:1])
        found.append(Curve(label, colour, [(n, slot * memory.slots(n, end)) for n in counts]))
    return found


def draw_growth(name: str, title: str, drawn: Sequence[Curve]) -> Drawing:
    """Bytes over tokens, one staircase for each kind."""
    tokens, top = drawn[0].points[-1][0], max(points[-1][1] for _, _, points in drawn)
    unit, divisor = ("GB", 1e9) if top >= 1e9 else ("MB", 1e6)
    ends = [f"{label} {number(points[-1][1] / divisor)} {unit}" for label, _, points in drawn]
    alt = f"Memory of a KV cache from 1 to {tokens:,} tokens; at the end: {', '.join(ends)}."
    drawing = Drawing(name, LEFT + WIDTH + 190, TOP + HEIGHT + 48, title, alt)

    def place(count: float, size: float) -> tuple[float, float]:
        return LEFT + WIDTH * count / tokens, TOP + HEIGHT * (1 - size / top)

    drawing.line([(LEFT, TOP), (LEFT, TOP + HEIGHT), (LEFT + WIDTH, TOP + HEIGHT)], GREY)
    for part in range(5):
        x, y = place(tokens * part / 4, top * part / 4)
        drawing.text(x, TOP + HEIGHT + 14, f"{tokens * part // 4:,}", 11, colour=GREY)
        drawing.text(LEFT - 8, y, number(top * part / 4 / divisor), 11, "end", GREY)
    drawing.text(LEFT + WIDTH / 2, TOP + HEIGHT + 34, "tokens", 11, colour=GREY)
    drawing.text(LEFT - 8, TOP - 16, unit, 11, "end", GREY)
    above = TOP - 99.0
    for label, colour, points in sorted(drawn, key=lambda curve: -curve.points[-1][1]):
        drawing.line([place(*point) for point in points], colour, 2)
        x, y = place(*points[-1])
        above = max(y, above + 15)  # so that no two labels overlap
        drawing.text(x + 10, above, label, 11, "start")
    return drawing


def rounds(tokens: int, sinks: int, recent: int, slots: int) -> list[tuple[list[int], list[bool]]]:
    """After each token: the position that each slot holds (-1: none), and which of them its query sees."""
    if not 0 <= sinks < slots:
        raise ValueError(f"sinks: expected 0 to {slots - 1} (the slots but one), found {sinks}")
    if not 1 <= recent <= slots - sinks:
        raise ValueError(f"recent: expected 1 to {slots - sinks} (the slots but the sinks), found {recent}")
    if tokens < 1:
        raise ValueError(f"tokens: expected at least 1, found {tokens}")
    found, held = list[tuple[list[int], list[bool]]](), [-1] * slots
    for last in range(tokens):
        held[rotating.slot_of(last, sinks, slots)] = last
        mask = rotating.visible(mx.array([last]), rotating.held_positions(last, sinks, slots), sinks, recent)
        found.append((list(held), [bool(seen) for seen in mask[0].tolist()]))  # type: ignore[union-attr]
    return found


def draw_ring(name: str, tokens: int, sinks: int, recent: int, slots: int) -> Drawing:
    """A row for each token: what the slots hold, filled where the newest token sees it."""
    rows = rounds(tokens, sinks, recent, slots)
    last = [str(position) for position, seen in zip(*rows[-1], strict=True) if seen]
    alt = (
        f"{slots} slots, the first {sinks} for sinks, the others a ring. Token by token from 0 to {tokens - 1} the "
        f"newest one takes the place of the oldest; the last sees positions {', '.join(sorted(last, key=int))}."
    )
    left = 74
    drawing = Drawing(name, left + CELL * slots + 150, 48 + 26 * tokens, "A ring of slots behind the sinks", alt)
    for slot in range(slots):
        drawing.text(left + CELL * (slot + 0.5), 14, "sink" if slot < sinks else f"slot {slot}", 10, colour=GREY)
    for token, (held, seen) in enumerate(rows):
        y = 30 + 26 * token
        drawing.text(left - 8, y + 11, f"token {token}", 11, "end")
        for slot, position in enumerate(held):
            x = left + CELL * slot
            fill = GREEN if slot < sinks else BLUE
            border = {"stroke": AMBER, "stroke_width": 2.2} if position == token else {}
            shown = position >= 0
            tip = f"token {token} {'sees' if seen[slot] else 'does not see'} position {position}" if shown else ""
            drawing.rect(x, y, CELL - 2, 22, fill, 0.45 if seen[slot] and shown else 0.0, tip=tip, **border)
            if shown:
                drawing.text(x + CELL / 2 - 1, y + 11, str(position), 11)
    x = left + CELL * slots + 10
    for i, (words, fill, share) in enumerate(
        (("sink, seen", GREEN, 0.45), ("newest, seen", BLUE, 0.45), ("no longer seen", BLUE, 0.0))
    ):
        drawing.rect(x, 30 + 22 * i, 14, 14, fill, share)
        drawing.text(x + 20, 37 + 22 * i, words, 11, "start")
    drawing.rect(x, 96, 14, 14, "none", 0, stroke=AMBER, stroke_width=2.2)
    drawing.text(x + 20, 103, "written now", 11, "start")
    return drawing
