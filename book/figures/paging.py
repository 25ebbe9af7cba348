"""Chapters 3.3 and 3.4: padded and paged memory, a token's way to its slot, who reads which block in the kernel."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

CELL = 26
LENGTHS = (("A", 10, BLUE), ("B", 3, AMBER), ("C", 6, GREEN))
TABLES = {"A": (5, 1, 6), "B": (2,), "C": (0, 3)}
SIZE, BLOCKS = 4, 8


def padded() -> Drawing:
    """The same three sequences padded to the longest, and in blocks of four."""
    longest = max(length for _, length, _ in LENGTHS)
    waste = len(LENGTHS) * longest - sum(length for _, length, _ in LENGTHS)
    held = sum(-(-length // SIZE) * SIZE for _, length, _ in LENGTHS)
    alt = (
        f"Sequences of 10, 3 and 6 tokens. Padded to the longest they leave {waste} of {3 * longest} slots empty; in "
        f"blocks of four {held - sum(length for _, length, _ in LENGTHS)} of {held}, none more than three."
    )
    drawing = Drawing("padded-or-paged", 720, 190, "Padded, and in blocks", alt)
    for left, title, width in (
        (70, "padded", lambda _: longest),
        (400, "in blocks of 4", lambda n: -(-n // SIZE) * SIZE),
    ):
        drawing.text(left, 24, title, 13, "start", bold=True)
        for row, (name, length, colour) in enumerate(LENGTHS):
            y = 46 + row * 44
            drawing.text(left - 14, y + 13, name, 13)
            for i in range(width(length)):
                full = i < length
                x = left + i * CELL + (i // SIZE * 4 if left > 100 else 0)
                drawing.rect(x, y, CELL - 2, CELL, colour if full else GREY, 0.45 if full else 0.08, rx=2)
    return drawing


def table() -> Drawing:
    """Token 9 of A: entry 2 of its table, block 6, slot 1."""
    alt = (
        "Block tables of three sequences: A has blocks 5, 1, 6; B has 2; C has 0, 3. Token 9 of A is in entry "
        "9 / 4 = 2 of its table, which names block 6, and there in slot 9 mod 4 = 1. "
        "Blocks 4 and 7 of the pool are free."
    )
    drawing = Drawing("block-table", 740, 250, "From a token to its slot", alt)
    colours = {name: colour for name, _, colour in LENGTHS}
    lengths = {name: length for name, length, _ in LENGTHS}
    drawing.text(20, 24, "block tables", 13, "start", bold=True)
    for row, (name, blocks) in enumerate(TABLES.items()):
        drawing.text(30, 58 + row * 36, name, 13)
        for i, block in enumerate(blocks):
            here = (name, i) == ("A", 2)
            border = {"stroke": RED, "stroke_width": 2} if here else {}
            drawing.rect(48 + i * 38, 44 + row * 36, 34, 28, colours[name], 0.4, rx=3, **border)
            drawing.text(65 + i * 38, 58 + row * 36, str(block), 13)
    drawing.text(200, 24, "the pool: 8 blocks of 4 slots", 13, "start", bold=True)
    owner = {block: (name, i) for name, blocks in TABLES.items() for i, block in enumerate(blocks)}
    for block in range(BLOCKS):
        x, y = 200 + block % 4 * 132, 66 + block // 4 * 90
        drawing.text(x + 50, y - 14, f"block {block}", 11, colour=GREY)
        for slot in range(SIZE):
            name, i = owner.get(block, ("", 0))
            full = bool(name) and i * SIZE + slot < lengths[name]
            here = (name, i, slot) == ("A", 2, 1)
            border = {"stroke": RED, "stroke_width": 2.5} if here else {}
            drawing.rect(
                x + slot * 28, y, 26, 36, colours[name] if full else GREY, 0.45 if full else 0.08, rx=2, **border
            )
            if full:
                drawing.text(x + slot * 28 + 13, y + 18, f"{name}{i * SIZE + slot}", 10)
    drawing.text(20, 226, "A9: 9 / 4 = 2 → block 6; 9 mod 4 = 1 → slot 1", 13, "start", RED)
    return drawing


def split() -> Drawing:
    """Threadgroups over the table: each takes a chunk of the keys for all query heads that share them."""
    alt = (
        "A sequence of 12 blocks. Each of three threadgroups takes four entries of its table, wherever these blocks "
        "lie in the pool, and reads them once for the four query heads that share them. "
        "A second launch merges the parts."
    )
    drawing = Drawing("paged-split", 720, 250, "Who reads which block", alt)
    blocks, colours = (7, 3, 12, 4, 9, 1, 14, 6, 2, 11, 8, 5), (BLUE, AMBER, GREEN)
    drawing.text(20, 24, "table of a sequence of 12 blocks", 13, "start", bold=True)
    for i, block in enumerate(blocks):
        drawing.rect(20 + i * 56, 40, 52, 30, colours[i // 4], 0.4, rx=3)
        drawing.text(46 + i * 56, 55, str(block), 13)
    for group in range(3):
        x = 40 + group * 224
        drawing.line([(x + 88, 72), (x + 88, 96)], arrow=True)
        drawing.rect(x, 98, 180, 54, colours[group], 0.15, rx=5)
        drawing.text(x + 90, 115, f"threadgroup {group}", 13, bold=True)
        drawing.text(x + 90, 137, "query heads 0 1 2 3", 12, colour=GREY)
        drawing.line([(x + 88, 154), (360 + (group - 1) * 30, 194)], arrow=True)
    drawing.rect(270, 196, 180, 34, GREY, 0.2, rx=5)
    drawing.text(360, 213, "merge_attention", 13)
    return drawing


def reads() -> Drawing:
    """What gathering first costs beside reading through the table."""
    rows = (("gathered, then read", 3, RED), ("read through the table", 1, BLUE))
    alt = (
        "Keys and values gathered first are read, written and read again: three times their bytes. By the table: once."
    )
    drawing = Drawing("paged-reads", 640, 110, "Bytes of K and V for one token", alt)
    for i, (label, times, colour) in enumerate(rows):
        y = 20 + 42 * i
        drawing.text(190, y + 14, label, 13, "end")
        for j in range(times):
            drawing.rect(204 + j * 130, y, 126, 28, colour, 0.4, rx=3)
            drawing.text(267 + j * 130, y + 14, ("read", "write", "read")[j] if times > 1 else "read", 12)
    return drawing


def drawings() -> list[Drawing]:
    return [padded(), table(), split(), reads()]
