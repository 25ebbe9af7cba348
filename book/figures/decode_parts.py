"""Chapter 2.10: who reads which keys, and how parts become one."""

import math

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, HUES, RED, Drawing, number

KEYS, VALUES = (0.0, 1.0, 2.0, 3.0), (10.0, 20.0, 30.0, 40.0)


def part(keys: range) -> tuple[float, float, float]:
    """(maximum, sum, mix) of a query 1 over some of KEYS."""
    top = max(KEYS[k] for k in keys)
    weights = [math.exp(KEYS[k] - top) for k in keys]
    return top, sum(weights), sum(w * VALUES[k] for w, k in zip(weights, keys, strict=True))


def work() -> Drawing:
    """1,024 keys in chunks of 256, two key-value heads, four query heads each."""
    alt = (
        "Without a split, one threadgroup for each of 8 query heads walks 1,024 keys, and four of them read the same. "
        "Split and shared: 4 chunks of 256 keys times 2 key-value heads are 8 threadgroups, each for 4 query heads; "
        "nothing is read twice."
    )
    drawing = Drawing("decode-work", 660, 196, "Who reads which keys", alt)
    for side, title in enumerate(("a threadgroup for each query head", "one for each chunk and key-value head")):
        left = 60 + 320 * side
        drawing.text(left + 120, 12, title, 12, bold=True)
        for head in range(8):
            y = 30 + 16 * head + (8 if head > 3 else 0)
            drawing.text(left - 6, y + 6, f"q{head}", 9, "end", GREY)
            for chunk in range(4):
                hue = HUES[chunk] if side else (BLUE if head < 4 else GREEN)
                drawing.rect(
                    left + 61 * chunk, y, 58 if side else 61, 13, hue, 0.4 if side else 0.12 + 0.1 * (head % 4)
                )
        if side:
            for pair in range(2):
                for chunk in range(4):
                    y = 28 + 72 * pair
                    drawing.rect(left + 61 * chunk - 1, y, 60, 66, "none", 0, stroke=RED, stroke_width=1.6)
        drawing.text(left + 120, 184, "1,024 keys" + (" in 4 chunks" if side else ""), 11, colour=GREY)
    return drawing


def merging() -> Drawing:
    """Two parts of two keys each, and their sum with factors."""
    first, second = part(range(2)), part(range(2, 4))
    factor = math.exp(first[0] - second[0])
    total, mix = first[1] * factor + second[1], first[2] * factor + second[2]
    alt = (
        f"Keys 0 and 1 leave maximum {number(first[0])}, sum {number(first[1])}, mix {number(first[2])}; keys 2 and 3 "
        f"leave {number(second[0])}, {number(second[1])}, {number(second[2])}. Seen from the higher maximum the first "
        f"counts {number(factor)} times. Together: sum {number(total)}, mix {number(mix)}, output "
        f"{number(mix / total)}."
    )
    drawing = Drawing("decode-merge", 660, 170, "Two parts become one", alt)
    for i, (title, values, hue) in enumerate((("keys 0 and 1", first, BLUE), ("keys 2 and 3", second, AMBER))):
        y = 14 + 54 * i
        drawing.text(96, y + 16, title, 12, "end")
        for column, (words, value) in enumerate(zip(("maximum", "sum", "mix"), values, strict=True)):
            drawing.rect(110 + 100 * column, y, 90, 32, hue, 0.3, rx=4)
            drawing.text(155 + 100 * column, y + 16, f"{words} {number(value)}", 11)
        share = factor if i == 0 else 1.0
        drawing.text(420, y + 16, f"· exp({number(values[0])} - {number(second[0])}) = {number(share)}", 12, "start")
    drawing.line([(110, 118), (560, 118)], GREY)
    drawing.text(96, 142, "together", 12, "end")
    for column, (words, value) in enumerate((("maximum", second[0]), ("sum", total), ("mix", mix))):
        drawing.rect(110 + 100 * column, 126, 90, 32, GREEN, 0.3, rx=4)
        drawing.text(155 + 100 * column, 142, f"{words} {number(value)}", 11)
    drawing.text(420, 142, f"output {number(mix)} / {number(total)} = {number(mix / total)}", 12, "start", bold=True)
    return drawing


def drawings() -> list[Drawing]:
    return [work(), merging()]
