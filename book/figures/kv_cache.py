"""Chapters 2.4 and 2.5: a buffer that grows, a fork that copies when it writes, what caches cost, a ring of slots."""

from tiny_llm.config import ModelConfig, RopeConfig
from tiny_llm.views.kv import curves, draw_growth, draw_ring
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

CELL, ROW = 52, 42
WORDS = ("the", "cat", "sat", "down", "there", "still")
QWEN3_0_6B = ModelConfig("qwen3", 1024, 28, 3072, 16, 8, 128, 151_936, 40_960, 1e-6, RopeConfig(1e6), True, False, True)


def buffer() -> Drawing:
    """One layer's keys, step by step."""
    steps = (  # (what, slots, kept before, written now, forgotten)
        ("prompt of 3", 4, 0, 3, 0),
        ("one token", 4, 3, 1, 0),
        ("one more: grows", 8, 4, 1, 0),
        ("trim(2)", 8, 3, 0, 2),
        ("another token", 8, 3, 1, 1),
    )
    alt = (
        "Five steps of a buffer that grows by 4 slots. A prompt of 3 tokens fills slots 0 to 2, the next token slot 3. "
        "One more token needs 4 more slots: a larger buffer, into which the old one is copied. Trimming 2 tokens moves "
        "only the offset; the next token overwrites the first forgotten slot."
    )
    drawing = Drawing("kv-buffer", 150 + 8 * CELL + 130, 44 + ROW * len(steps), "The buffer of a KV cache", alt)
    for slot in range(8):
        drawing.text(150 + CELL * (slot + 0.5), 14, f"slot {slot}", 10, colour=GREY)
    texts = [*WORDS[:5], "still"]
    for i, (what, slots, kept, written, forgotten) in enumerate(steps):
        y = 28 + ROW * i
        drawing.text(140, y + 15, what, 12, "end")
        for slot in range(slots):
            new, old = kept <= slot < kept + written, slot < kept
            stale = kept + written <= slot < kept + written + forgotten
            fill, share = (AMBER, 0.45) if new else (BLUE, 0.35) if old else ("none", 0.0)
            drawing.rect(150 + CELL * slot, y, CELL - 3, 30, fill, share)
            word = texts[5] if i == 4 and new else texts[slot] if new or old or stale else "0"
            grey = GREY if not (new or old) else "currentColor"
            drawing.text(150 + CELL * (slot + 0.5) - 1, y + 15, word, 11, colour=grey)
        drawing.text(150 + 8 * CELL + 8, y + 15, f"offset {kept + written}, capacity {slots}", 11, "start", GREY)
    return drawing


def fork() -> Drawing:
    """Two caches and the arrays that their lists name."""
    alt = (
        "Before: cache and fork each have a list of their own, and both lists name the same array. After the fork has "
        "written one token its list names a new array, a copy with the token; the other list still names the old one."
    )
    drawing = Drawing("kv-fork", 700, 150, "A fork copies when it writes", alt)
    for column, (title, apart) in enumerate((("after fork()", False), ("after the fork's first write", True))):
        left = 20 + 350 * column
        drawing.text(left + 150, 12, title, 13, bold=True)
        for row, (name, fill) in enumerate((("cache", BLUE), ("fork", GREEN))):
            y = 36 + 62 * row
            drawing.rect(left, y, 74, 32, fill, 0.2, rx=5)
            drawing.text(left + 37, y + 16, name, 12)
            target = y if apart else 67
            drawing.line([(left + 76, y + 16), (left + 126, target + 16)], arrow=True)
            if apart or row == 0:
                words = ["the", "cat", "sat", *(["down"] if apart and row else [])]
                for i, word in enumerate(words):
                    drawing.rect(left + 130 + 44 * i, target, 42, 32, AMBER if i == 3 else BLUE, 0.4)
                    drawing.text(left + 151 + 44 * i, target + 16, word, 11)
    return drawing


def drawings() -> list[Drawing]:
    title = "KV cache of Qwen3-0.6B"
    growth = draw_growth("kv-growth", title, curves(QWEN3_0_6B, 2, 8192, 1024))
    return [buffer(), fork(), growth, draw_ring("kv-ring", 11, 2, 3, 6)]
