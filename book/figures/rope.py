"""Chapter 1.2: rotating pairs, and scores that depend on the distance alone."""

import math

from tiny_llm.config import RopeConfig
from tiny_llm.views import rope
from tiny_llm.views.svg import BLUE, GREY, HUES, Drawing, number

CONFIG = RopeConfig(theta=100.0)


def pairing() -> Drawing:
    """Which dimensions of a head make a pair."""
    alt = (
        "Eight dimensions twice. Qwen's pairing joins 0 with 4, 1 with 5, 2 with 6 and 3 with 7. The pairing of the "
        "paper joins neighbours: 0 with 1, 2 with 3, 4 with 5, 6 with 7."
    )
    drawing = Drawing("rope-pairing", 640, 124, "Two ways to pair the dimensions of a head", alt)
    kinds = (("halves (Qwen, Hugging Face)", lambda i: i % 4), ("neighbours (the paper)", lambda i: i // 2))
    for column, (title, pair_of) in enumerate(kinds):
        left = 16 + 320 * column
        drawing.text(left + 140, 12, title, 13, bold=True)
        for i in range(8):
            drawing.rect(left + 36 * i, 78, 32, 28, HUES[pair_of(i)], 0.35, rx=3)
            drawing.text(left + 36 * i + 16, 92, str(i), 12)
        for pair in range(4):
            a, b = (left + 36 * i + 16 for i in range(8) if pair_of(i) == pair)
            top = 68 - 11 * pair if column == 0 else 62
            drawing.line([(a, 78), (a, top), (b, top), (b, 78)], HUES[pair], 1.5)
    return drawing


def frequencies() -> Drawing:
    """Positions per turn for the 64 pairs of a head of 128, theta 1,000,000."""
    half, theta = 64, 1e6
    periods = [2 * math.pi * theta ** (i / half) for i in range(half)]
    alt = (
        f"Bars on a logarithmic scale for 64 pairs: the fastest turns once in {number(periods[0])} positions, pair 32 "
        f"in {periods[32]:,.0f}, the slowest in {periods[-1]:,.0f}."
    )
    drawing = Drawing("rope-frequencies", 660, 170, "Positions per turn, Qwen3 (D = 128, theta = 1,000,000)", alt)
    for power in range(1, 8):
        y = 146 - 20 * (power - 0.5)
        drawing.line([(76, y), (650, y)], GREY, 0.4)
        drawing.text(70, y, f"{10**power:,}", 10, "end", GREY)
    for i, period in enumerate(periods):
        height = 20 * (math.log10(period) - 0.5)
        drawing.rect(80 + 8.8 * i, 146 - height, 7, height, BLUE, 0.5, tip=f"pair {i}: {period:,.1f} positions")
    drawing.text(360, 160, "pair 0 to 63", 11, colour=GREY)
    return drawing


def drawings() -> list[Drawing]:
    pairs = rope.turned_pairs(CONFIG, 4, range(4))
    periods = [2 * math.pi * 100.0 ** (2 * i / 4) for i in range(2)]
    rows = rope.scores(RopeConfig(), [1, 0, 0, 0], [1, 0, 0, 0], 5)
    return [
        pairing(),
        frequencies(),
        rope.draw_rotation("rope-rotation", pairs, periods),
        rope.draw_scores("rope-distance", rows),
    ]
