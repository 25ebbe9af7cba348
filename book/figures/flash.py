"""Chapter 2.9: two steps of FlashAttention, and the bytes that it saves."""

from tiny_llm.views import flash
from tiny_llm.views.svg import BLUE, GREY, RED, Drawing

TOKENS, DIM, HEADS = 4096, 128, 16


def stored() -> float:
    """Megabytes of one layer in half precision with the scores in memory: written, read, written as weights, read."""
    return (4 * TOKENS * HEADS * DIM * 2 + 4 * HEADS * TOKENS * TOKENS * 2) / 1e6


def tiled(queries: int) -> float:
    """The same with tiles of so many queries: keys and values once for each tile that sees them and query head."""
    seen = sum(min(first + queries, TOKENS) for first in range(0, TOKENS, queries))
    return (2 * TOKENS * HEADS * DIM * 2 + seen * HEADS * 2 * DIM * 2) / 1e6


def traffic() -> Drawing:
    """Megabytes that are asked for, by the size of a tile."""
    rows = [("scores in memory", stored(), RED)]
    rows += [(f"tiles of {queries} queries", tiled(queries), BLUE) for queries in (8, 32, 128)]
    alt = f"Megabytes that attention of one layer asks for, {TOKENS:,} tokens, {HEADS} heads of {DIM}: " + ", ".join(
        f"{name} {size:,.0f}" for name, size, _ in rows
    )
    drawing = Drawing("flash-traffic", 660, 128, "Bytes asked for, by the size of a tile", f"{alt}.")
    scale = 380 / max(size for _, size, _ in rows)
    for i, (name, size, hue) in enumerate(rows):
        y = 8 + 30 * i
        drawing.text(156, y + 11, name, 12, "end")
        drawing.rect(166, y, size * scale, 22, hue, 0.45)
        drawing.text(172 + size * scale, y + 11, f"{size:,.0f} MB", 11, "start", GREY)
    return drawing


def drawings() -> list[Drawing]:
    frames = flash.draw(8, 4, 3, name="flash-step")
    return [frames[0], frames[3], traffic()]
