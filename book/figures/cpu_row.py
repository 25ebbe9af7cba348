"""Chapter 2.11: rows side by side in a vector, a code at its place in a word, and the bytes of a token."""

from roofline import QWEN3_06B

from tiny_llm.kernels.roofline import matrix_weights
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, HUES, RED, Drawing

ROWS, WORDS = 8, 4  # lanes of a vector, words of a row that are drawn
CODES = (8, 9, 10, 11, 12, 13, 14, 15)
BANDWIDTH = 25  # GB/s
FORMATS = (("float32", 32.0), ("16 bits", 16.0), ("8 bits, groups of 64", 8.5), ("4 bits, groups of 64", 4.5))


def lanes() -> Drawing:
    """Eight rows of words as MLX stores them, and as the kernel reads them."""
    alt = (
        "Above: a matrix of eight rows, each of its words beside the next, one row after the other. Below, the order in "
        "which the kernel reads: the first words of all eight rows, then the second words of all eight rows, and so on. "
        "Eight words are one vector; it meets eight numbers of x, each of which is the same for all rows."
    )
    drawing = Drawing("cpu-lanes", 680, 216, "Eight rows side by side", alt)
    cell = 20.0
    drawing.text(8, 14, "as MLX stores it: row after row", 12, "start", bold=True)
    for row in range(ROWS):
        for word in range(WORDS):
            at = WORDS * row + word
            drawing.rect(8 + cell * at, 26, cell, 22, HUES[word], 0.35, stroke_width=0.4)
            drawing.text(18 + cell * at, 37, str(row), 10)
    drawing.text(8 + cell * WORDS / 2, 60, "row 0", 11, colour=GREY)
    drawing.text(8 + cell * WORDS * 1.5, 60, "row 1", 11, colour=GREY)
    drawing.text(8, 96, "as the kernel reads it: a vector takes one word of each of eight rows", 12, "start", bold=True)
    for word in range(WORDS):
        for row in range(ROWS):
            at = ROWS * word + row
            drawing.rect(8 + cell * at, 108, cell, 22, HUES[word], 0.35, stroke_width=0.4)
            drawing.text(18 + cell * at, 119, str(row), 10)
        begin = 8 + cell * ROWS * word
        drawing.rect(begin, 106, cell * ROWS, 26, stroke_width=2)
        middle = begin + cell * ROWS / 2
        drawing.line([(middle, 158), (middle, 136)], GREY, 1.2, True)
        drawing.text(middle, 170, f"x[{8 * word}] … x[{8 * word + 7}]", 11)
    drawing.text(8, 200, "Numbers are rows, colours are columns: one word holds eight columns of 4 bits.", 11, "start", GREY)
    return drawing


def place() -> Drawing:
    """A word of eight codes; one masked where it stands, the last one shifted down."""
    word = sum(code << 4 * i for i, code in enumerate(CODES))
    rows = (
        (word, (), "the word", ""),
        (word & 15 << 12, (3,), "masked with 15 · 16³", "= 11 · 16³, times x[3] / 16³"),
        (word >> 28, (0,), "shifted down by 28", "= 15, times x[7] as it is"),
        (word & 15 << 28, (7,), "masked with 15 · 16⁷", "as a signed number: -16⁷"),
    )
    alt = (
        f"The word {word:08X} holds the codes 8 to 15. Masked with 15 times 16 cubed, code 3 stays at its place: 11 times "
        "16 cubed; its number of x is divided by 16 cubed. The last code is shifted down by 28 to be 15. Masked at its place "
        "it would have the highest bit set, which a signed number takes for its sign: minus 16 to the seventh."
    )
    drawing = Drawing("cpu-place", 680, 190, "A code counts as much as its place", alt)
    for i in range(8):
        drawing.text(184 + 38 * (7 - i), 8, f"code {i}", 9, colour=GREY)
    for row, (value, marked, words, result) in enumerate(rows):
        y, hue = 18 + 42 * row, RED if row == 3 else AMBER
        drawing.text(152, y + 14, words, 12, "end")
        for i in range(8):
            digit = value >> 4 * i & 15
            is_marked = i in marked
            drawing.rect(164 + 38 * (7 - i), y, 36, 28, hue if is_marked else BLUE, 0.5 if is_marked else 0.12, rx=4)
            drawing.text(182 + 38 * (7 - i), y + 14, f"{digit:X}", 13, colour="currentColor", bold=is_marked)
        drawing.text(480, y + 14, result, 12, "start")
    return drawing


def read_bytes() -> Drawing:
    """What a token reads of Qwen3-0.6B in each format, and how many tokens that allows."""
    weights = matrix_weights(QWEN3_06B)
    bars = [(name, weights * bits / 8 / 1e9) for name, bits in FORMATS]
    alt = f"Gigabytes of weights that a token of Qwen3-0.6B reads, and tokens per second at {BANDWIDTH} GB/s. " + " ".join(
        f"{name}: {size:.2f} GB, {BANDWIDTH / size:.0f}." for name, size in bars
    )
    drawing = Drawing("cpu-bytes", 680, 30 + 36 * len(bars), "What a token reads", alt)
    scale = 290 / bars[0][1]
    for i, (name, size) in enumerate(bars):
        y = 24 + 36 * i
        drawing.text(150, y + 13, name, 12, "end")
        drawing.rect(160, y, scale * size, 26, GREEN if i > 1 else BLUE, 0.4)
        words = f"{size:.2f} GB, at most {BANDWIDTH / size:.0f} tokens/s"
        drawing.text(168 + scale * size, y + 13, words, 12, "start", bold=True)
    drawing.text(160, 10, f"a machine that reads {BANDWIDTH} GB/s", 11, "start", GREY)
    return drawing


def drawings() -> list[Drawing]:
    return [lanes(), place(), read_bytes()]
