"""Chapters 1.1 and 1.3: four tokens by hand, kinds of masks, heads that share."""

import mlx.core as mx

from tiny_llm.views.mask import mask_of, weights_of
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, HUES, Drawing, number

TOKENS = ("the", "cat", "sat", "down")
Q = [[2, 0, 0, 0], [2, 2, 0, 0], [0, 2, 4, 0], [2, 4, 0, 2]]
K = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
SCALE = 0.5
CELL = 36


def by_hand() -> Drawing:
    """Scores, masked scores, weights of the four tokens."""
    q, k = mx.array(Q, mx.float32), mx.array(K, mx.float32)
    mask = mask_of(4, 4)
    scores = (SCALE * q @ k.T).tolist()
    weights = weights_of(q, k, SCALE, mask)
    masked = [
        [value if seen else None for value, seen in zip(*rows, strict=True)] for rows in zip(scores, mask, strict=True)
    ]
    alt = (
        "Three grids of four queries by four keys. Scores: "
        + "; ".join(", ".join(map(number, row)) for row in scores)
        + ". Masked: everything above the diagonal is minus infinity. Weights after softmax: "
        + "; ".join(", ".join(map(number, row)) for row in weights)
        + "."
    )
    drawing = Drawing("attention-by-hand", 660, 226, "Four tokens: scores, mask, weights", alt)
    _grid(drawing, 60, "scores  q·k / 2", scores, 0.09)
    _grid(drawing, 275, "masked", masked, 0.09)
    _grid(drawing, 490, "softmax of each row", weights, 0.6)
    for x in (60 + 4 * CELL, 275 + 4 * CELL):
        drawing.line([(x + 18, 56 + 2 * CELL), (x + 54, 56 + 2 * CELL)], arrow=True)
    for i, token in enumerate(TOKENS):
        drawing.text(52, 56 + CELL * (i + 0.5), token, 12, "end")
    return drawing


def _grid(drawing: Drawing, x: float, title: str, rows: list, strength: float) -> None:
    drawing.text(x + 2 * CELL, 12, title, 13, bold=True)
    for s, token in enumerate(TOKENS):
        drawing.text(x + CELL * (s + 0.5), 40, token, 11, colour=GREY)
    for t, row in enumerate(rows):
        for s, value in enumerate(row):
            shade = 0.08 + strength * value if value is not None else 0
            drawing.rect(x + CELL * s, 56 + CELL * t, CELL, CELL, BLUE, shade)
            drawing.text(x + CELL * (s + 0.5), 56 + CELL * (t + 0.5), "-∞" if value is None else number(value), 12)


def mask_kinds() -> Drawing:
    """One row of three masks: a prompt, a chunk behind a cache, a window."""
    kinds = (("prompt: T = S = 6", 6, None), ("chunk: T = 2, S = 6", 2, None), ("window of 3: T = S = 6", 6, 3))
    masks = [mask_of(queries, 6, window) for _, queries, window in kinds]
    alt = "; ".join(
        f"{title}: the queries see {', '.join(str(sum(row)) for row in mask)} keys"
        for (title, _, _), mask in zip(kinds, masks, strict=True)
    )
    drawing = Drawing("mask-kinds", 660, 190, "Three causal masks", f"Three masks. {alt}.")
    for i, ((title, queries, _), mask) in enumerate(zip(kinds, masks, strict=True)):
        x = 30 + 215 * i
        drawing.text(x + 72, 12, title, 13, bold=True)
        for t, row in enumerate(mask):
            own = 6 - queries + t
            y = 32 + 24 * own
            drawing.text(x - 8, y + 12, str(own), 11, "end", GREY)
            for s, visible in enumerate(row):
                drawing.rect(x + 24 * s, y, 24, 24, AMBER if s == own else BLUE, 0.45 if visible else 0)
    return drawing


def sharing() -> Drawing:
    """Eight query heads over 8, 2 and 1 key/value heads."""
    alt = (
        "Eight query heads above their key/value heads. MHA: eight, one each. GQA: two, each shared by four "
        "neighbouring query heads. MQA: one, shared by all eight."
    )
    drawing = Drawing("head-sharing", 720, 170, "Heads that share keys and values", alt)
    for i, (title, num_kv) in enumerate((("MHA: 8 K/V heads", 8), ("GQA: 2 K/V heads", 2), ("MQA: 1 K/V head", 1))):
        left, group = 14 + 240 * i, 8 // num_kv
        drawing.text(left + 104, 12, title, 13, bold=True)
        for head in range(8):
            hue, x = HUES[(head // group) % 4], left + 26 * head
            middle = left + 26 * (head // group * group + group / 2) - 2
            drawing.line([(x + 11, 62), (middle, 108)], hue, 1.5)
            drawing.rect(x, 40, 22, 22, hue, 0.35, rx=3)
            drawing.text(x + 11, 51, f"q{head}", 10)
        for head in range(num_kv):
            middle = left + 26 * (head * group + group / 2) - 2
            drawing.rect(middle - 11, 108, 22, 34, HUES[head % 4], 0.35, rx=3)
            drawing.text(middle, 118, f"k{head}", 10)
            drawing.text(middle, 132, f"v{head}", 10)
        drawing.text(left + 104, 158, f"cache per token and layer: {num_kv} × 2 × D", 11, colour=GREY)
    return drawing


def regrouping() -> Drawing:
    """Which query heads meet which K/V head when (Hq, T, D) becomes (Hkv, Hq / Hkv, T, D)."""
    alt = (
        "Query heads 0 to 3 regrouped: reshape to (2, 2, T, D) puts heads 0 and 1 with K/V head 0, heads 2 and 3 with "
        "K/V head 1. The mistake, reshape to (2, 2) with the axes swapped, puts heads 0 and 2 with K/V head 0."
    )
    drawing = Drawing("regrouping", 600, 120, "Neighbours share, not every second head", alt)
    for i, (title, groups) in enumerate(
        (("right: neighbours", ((0, 1), (2, 3))), ("mistake: every second", ((0, 2), (1, 3))))
    ):
        left = 20 + 300 * i
        drawing.text(left + 110, 12, title, 13, bold=True)
        for g, heads in enumerate(groups):
            x = left + 120 * g
            drawing.rect(x, 34, 104, 64, GREEN if i == 0 else AMBER, 0.15, rx=5)
            drawing.text(x + 52, 84, f"K/V head {g}", 11, colour=GREY)
            for j, head in enumerate(heads):
                drawing.rect(x + 12 + 42 * j, 44, 36, 26, HUES[head], 0.35, rx=3)
                drawing.text(x + 30 + 42 * j, 57, f"q{head}", 12)
    return drawing


def drawings() -> list[Drawing]:
    return [by_hand(), mask_kinds(), sharing(), regrouping()]
