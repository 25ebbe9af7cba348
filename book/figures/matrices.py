"""Chapter 2.8: rows that share a read, a tile in quarters, and K in slices."""

from tiny_llm.kernels.matmul import splits_for
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, HUES, RED, Drawing

N, K = 4096, 1024


def shared_rows() -> Drawing:
    """Megabytes of W that are read for 1 to 16 rows of x, once for all or once for each."""
    packed = N * K * 4.5 / 8 / 1e6
    rows = (1, 2, 4, 8, 16)
    alt = (
        f"W of {N:,} × {K:,} in 4 bits has {packed:.2f} MB. Read once for each row, 16 rows cost {16 * packed:.1f} MB; "
        f"read once for all, {packed:.2f} MB whatever their number."
    )
    drawing = Drawing("matrices-rows", 660, 176, "W read once for all rows, or for each", alt)
    for i, count in enumerate(rows):
        y = 14 + 28 * i
        drawing.text(86, y + 10, f"{count} row{'s' if count > 1 else ''}", 12, "end")
        drawing.rect(96, y, 13 * packed * count, 9, RED, 0.4, tip=f"{count * packed:.1f} MB")
        drawing.rect(96, y + 10, 13 * packed, 9, GREEN, 0.5, tip=f"{packed:.2f} MB")
        drawing.text(102 + 13 * packed * count, y + 5, f"{count * packed:.1f} MB", 10, "start", GREY)
    drawing.rect(96, 158, 12, 10, RED, 0.4)
    drawing.text(114, 163, "for each row", 11, "start")
    drawing.rect(216, 158, 12, 10, GREEN, 0.5)
    drawing.text(234, 163, "once for all", 11, "start")
    return drawing


def quarters() -> Drawing:
    """A tile of the output, its rows of x and of W, and whose matrices of 8 × 8 are whose."""
    alt = (
        "A tile of 32 × 32 outputs from 32 rows of x and 32 rows of W, 32 columns at a time. Four simdgroups have a "
        "quarter each: 16 × 16 outputs, four matrices of 8 × 8. One of these needs 8 rows of x and 8 of W."
    )
    drawing = Drawing("matrices-tile", 660, 256, "A tile and its quarters", alt)
    size = 30
    for i in range(4):
        for j in range(4):
            hue = HUES[i // 2 * 2 + j // 2]
            drawing.rect(250 + size * j, 110 + size * i, size - 2, size - 2, hue, 0.4)
    for g in range(4):
        drawing.text(279 + 60 * (g % 2), 139 + 60 * (g // 2), f"simdgroup {g}", 9, bold=True)
    for i in range(4):
        for k in range(4):
            drawing.rect(
                110 + size * k, 110 + size * i, size - 2, size - 2, AMBER if i == 0 else GREY, 0.45 if i == 0 else 0.12
            )
            drawing.rect(
                250 + size * i, 0 + 24 * k + 6, size - 2, 22, AMBER if i == 1 else GREY, 0.45 if i == 1 else 0.12
            )
    drawing.rect(250 + size, 110, size - 2, size - 2, "none", 0, stroke=RED, stroke_width=2.5)
    drawing.text(170, 246, "x: 32 rows, 32 columns", 11)
    drawing.text(390, 50, "W, transposed: 32 rows", 11, "start")
    drawing.text(390, 170, "32 × 32 outputs", 11, "start")
    drawing.text(390, 190, "outlined: Σ over four pairs of amber blocks", 11, "start", GREY)
    return drawing


def splits() -> Drawing:
    """Threadgroups for a small output: without a split, and with K in slices."""
    rows, outputs, columns = 32, 1024, 3072
    count = splits_for(rows, outputs, columns)
    tiles = outputs // 32
    alt = (
        f"{rows} rows of x, {outputs:,} outputs, {columns:,} columns: {tiles} tiles, so {tiles} threadgroups of which "
        f"each walks {columns:,} columns. In {count} slices of K there are {tiles * count} threadgroups with "
        f"{columns // count} columns each, and {count} partial results to add up."
    )
    drawing = Drawing("matrices-split", 660, 166, "Split-K", alt)
    for side, (parts, words) in enumerate(((1, f"{tiles} threadgroups"), (count, f"{tiles * count} threadgroups"))):
        left = 20 + 330 * side
        drawing.text(left + 145, 12, words, 13, bold=True)
        for part in range(parts):
            for tile in range(16):
                x, width = left + 290 / parts * part, 290 / parts - 4
                drawing.rect(x, 28 + 6.4 * tile, width, 5, HUES[part % 4] if side else BLUE, 0.45)
        drawing.line([(left, 140), (left + 286, 140)], GREY, 0.8, arrow=True)
        drawing.text(
            left + 145, 154, f"K = {columns:,}" + (f", {columns // parts} each" if side else ""), 11, colour=GREY
        )
    drawing.text(330, 154, "(every other tile)", 9, colour=GREY)
    return drawing


def drawings() -> list[Drawing]:
    return [shared_rows(), quarters(), splits()]
