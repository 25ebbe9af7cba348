"""Chapter 2.7: codes in a word, the lanes of a simdgroup over a row, and the bytes of a product."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, HUES, RED, Drawing

CODES = (8, 9, 10, 11, 12, 13, 14, 15)
GROUPS, LANES = 4, 32


def word() -> Drawing:
    """One word of eight codes, and code 3 taken out of it."""
    value = sum(code << 4 * i for i, code in enumerate(CODES))
    alt = (
        f"The word {value:08X} holds eight codes of 4 bits, the first in the lowest bits. To read code 3, shift right "
        f"by 12: {value >> 12:05X}. Then keep four bits: {CODES[3]:X}, which is {CODES[3]}."
    )
    drawing = Drawing("matvec-word", 660, 150, "Code 3 out of a word", alt)
    rows = ((value, 8, "the word"), (value >> 12, 5, "shifted right by 3 · 4"), (CODES[3], 1, "masked with four ones"))
    for row, (number, digits, words) in enumerate(rows):
        y = 14 + 44 * row
        drawing.text(170, y + 14, words, 12, "end")
        for i in range(digits):
            x = 190 + 52 * (7 - i)
            inside = i == (3 if row == 0 else 0)
            drawing.rect(x, y, 48, 28, AMBER if inside else BLUE, 0.5 if inside else 0.18, rx=4)
            drawing.text(x + 24, y + 14, f"{number >> 4 * i & 15:X}", 13, bold=inside)
    for i in range(8):
        drawing.text(214 + 52 * (7 - i), 6, f"code {i}", 9, colour=GREY)
    return drawing


def lanes() -> Drawing:
    """A step of a simdgroup: 32 words, four groups of 64 columns, four scales."""
    alt = (
        "A step of a simdgroup over a row in 4 bits: 32 lanes take a word of 8 columns each, 256 columns. They are "
        "four groups of 64 columns. Lanes 0 to 3 read one scale and one bias each; shuffles hand lane 0's to lanes 0 "
        "to 7, lane 1's to lanes 8 to 15, and so on."
    )
    drawing = Drawing("matvec-lanes", 660, 176, "One step: 32 lanes, 256 columns, 4 scales", alt)
    for lane in range(LANES):
        x, hue = 14 + 19.8 * lane, HUES[lane // 8]
        drawing.rect(x, 112, 17, 26, hue, 0.35, rx=2)
        drawing.text(x + 8.5, 125, str(lane), 9)
        if lane < GROUPS:
            drawing.rect(x, 40, 17, 26, HUES[lane], 0.7, rx=2)
            drawing.text(x + 8.5, 53, str(lane), 9, bold=True)
    for group in range(GROUPS):
        start, end = 14 + 19.8 * group + 8.5, 14 + 19.8 * (8 * group + 3.5) + 8.5
        drawing.line([(start, 67), (start, 76 + 5 * group), (end, 76 + 5 * group), (end, 109)], HUES[group], 1.5, True)
        drawing.text(end, 152, f"columns {64 * group} to {64 * group + 63}", 10, colour=GREY)
    drawing.text(112, 53, "four lanes read a scale and a bias, side by side", 12, "start")
    drawing.text(14, 20, "simd_shuffle(scale, lane · VALUES / GROUP)", 12, "start", bold=True)
    drawing.text(330, 168, "each lane: one word, 8 codes, 8 numbers of x", 11, colour=GREY)
    return drawing


def traffic() -> Drawing:
    """Bytes of one product of 4,096 × 1,024 in 4 bits and groups of 64, by what they are."""
    rows, columns = 4096, 1024
    packed = (("codes", rows * columns / 2, BLUE), ("scales", rows * columns / 64 * 4, GREEN))
    bars = (
        ("bfloat16, not quantized", (("weights", 2.0 * rows * columns, BLUE),)),
        ("4 bits, each row reads x", (*packed, ("x", 2.0 * rows * columns, RED))),
        ("4 bits, x shared by 128 rows", (*packed, ("x", 2.0 * columns * rows / 128, RED))),
    )
    alt = "Megabytes asked for by a product of 4,096 × 1,024. " + " ".join(
        f"{name}: {', '.join(f'{part} {size / 1e6:.2f}' for part, size, _ in parts)}." for name, parts in bars
    )
    drawing = Drawing("matvec-traffic", 660, 138, "What is asked of memory", alt)
    scale = 400 / max(sum(size for _, size, _ in parts) for _, parts in bars)
    for i, (name, parts) in enumerate(bars):
        x, y = 200.0, 12 + 42 * i
        drawing.text(190, y + 13, name, 12, "end")
        for part, size, hue in parts:
            drawing.rect(x, y, size * scale, 26, hue, 0.4, tip=f"{part}: {size / 1e6:.2f} MB")
            if size * scale > 34:
                drawing.text(x + size * scale / 2, y + 13, part, 11)
            x += size * scale
        drawing.text(x + 6, y + 13, f"{sum(size for _, size, _ in parts) / 1e6:.1f} MB", 11, "start", GREY)
    return drawing


def drawings() -> list[Drawing]:
    return [word(), lanes(), traffic()]
