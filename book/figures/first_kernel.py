"""Chapter 2.2: who computes what, and a sum over a threadgroup with its barrier."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

N, GROUP = 300, 256
LANES = 8  # drawn for 32


def grid() -> Drawing:
    """300 elements on two threadgroups of 256, the second cut short or guarded."""
    groups = -(-N // GROUP)
    alt = (
        f"{N} elements, one thread for each. They form {groups} threadgroups of {GROUP} threads; each has "
        f"{GROUP // 32} simdgroups of 32 lanes. In the last group only {N - GROUP * (groups - 1)} threads have an "
        f"element; where groups are whole, the other {groups * GROUP - N} must return."
    )
    drawing = Drawing("grid", 660, 168, "Grid, threadgroups, simdgroups, threads", alt)
    width = 296
    for group in range(groups):
        left = 24 + group * (width + 20)
        drawing.text(left + width / 2, 12, f"threadgroup {group}", 13, bold=True)
        drawing.rect(left, 26, width, 74, GREY, 0.06, rx=6)
        for simdgroup in range(8):
            x = left + 8 + simdgroup * (width - 16) / 8
            for lane in range(LANES):
                index = group * GROUP + simdgroup * 32 + lane * 4
                has = index < N
                place = (x + (lane % 4) * 7.5 + 2, 40 + (lane // 4) * 22)
                drawing.rect(*place, 6, 16, BLUE if has else RED, 0.5 if has else 0.15)
            drawing.text(x + 17, 92, f"{simdgroup}", 10, colour=GREY)
    drawing.text(24 + width / 2, 116, "8 simdgroups of 32 lanes (every fourth is drawn)", 11, colour=GREY)
    drawing.text(24 + width + 20 + width / 2, 116, f"{N - GROUP} threads have an element", 11, colour=GREY)
    drawing.text(330, 144, "thread_position_in_grid = threadgroup · 256 + place within the group", 12)
    return drawing


def reduction() -> Drawing:
    """Two simdgroups, their sums in threadgroup memory, and the two barriers."""
    values = ((9.0, 16.0), (0.0, 0.0))
    sums = [sum(pair) for pair in values]
    alt = (
        "Two simdgroups of two lanes hold the squares 9, 16 and 0, 0. simd_sum makes 25 and 0; the first lane of each "
        f"writes it to parts. After a barrier everyone reads both and has {sum(sums):.0f}. A second barrier keeps the "
        "next row from writing parts before all have read."
    )
    drawing = Drawing("reduction", 660, 214, "A sum over a threadgroup", alt)
    rows = ((24, "squares"), (76, "simd_sum, lane 0 writes parts"), (150, "everyone reads parts"))
    for y, words in rows:
        drawing.text(190, y + 13, words, 12, "end")
    for s, pair in enumerate(values):
        for lane, value in enumerate(pair):
            x = 210 + 150 * s + 56 * lane
            drawing.rect(x, 24, 48, 26, BLUE, 0.3, rx=4)
            drawing.text(x + 24, 37, f"{value:.0f}", 13)
            drawing.rect(x, 150, 48, 26, GREEN, 0.3, rx=4)
            drawing.text(x + 24, 163, f"{sum(sums):.0f}", 13)
            drawing.line([(x + 24, 50), (238 + 150 * s + 24, 74)], GREY, 0.8, arrow=True)
        drawing.rect(238 + 150 * s, 76, 48, 26, AMBER, 0.4, rx=4)
        drawing.text(262 + 150 * s, 89, f"{sums[s]:.0f}", 13, bold=True)
        drawing.text(238 + 150 * s + 24, 10, f"simdgroup {s}", 11, colour=GREY)
    for s in range(2):
        for t in range(2):
            for lane in range(2):
                x = 234 + 150 * t + 56 * lane
                drawing.line([(262 + 150 * s, 102), (x, 148)], GREY, 0.4)
    for y, words in ((126, "barrier: all have written"), (192, "barrier: all have read")):
        drawing.line([(200, y), (480, y)], RED, 2, dash="6 4")
        drawing.text(488, y, words, 11, "start")
    return drawing


def drawings() -> list[Drawing]:
    return [grid(), reduction()]
