"""Chapter 1.6: what the naive loop computes again, and text held back before a stop string."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

PROMPT, NEW, CELL = 4, 5, 22


def triangle() -> Drawing:
    """Tokens run through the model in each step, with and without a cache."""
    naive = [PROMPT + step for step in range(NEW)]
    cached = [PROMPT] + [1] * (NEW - 1)
    alt = (
        f"A prompt of {PROMPT} tokens, {NEW} new ones. Without a cache the steps run {', '.join(map(str, naive))} "
        f"tokens, {sum(naive)} in all; with one {', '.join(map(str, cached))}, {sum(cached)} in all."
    )
    drawing = Drawing("naive-triangle", 640, 60 + CELL * NEW, "Tokens computed in each step", alt)
    for column, (title, counts) in enumerate((("naive", naive), ("with a KV cache", cached))):
        left = 60 + 310 * column
        drawing.text(left, 12, f"{title}, {sum(counts)} tokens", 13, "start", bold=True)
        for step, count in enumerate(counts):
            y = 30 + CELL * step
            drawing.text(left - 8, y + CELL / 2, f"step {step + 1}", 11, "end", GREY)
            for i in range(PROMPT + step):
                computed = i >= PROMPT + step - count
                fill = (BLUE if i < PROMPT else AMBER) if computed else GREEN
                drawing.rect(left + CELL * i, y, CELL, CELL, fill, 0.45 if computed else 0.08)
    drawing.text(
        310, 48 + CELL * NEW, "blue: prompt, amber: generated, pale: kept in the cache, not computed", 11, colour=GREY
    )
    return drawing


def held_back() -> Drawing:
    """Pieces of text and what may be shown when the stop string is END."""
    steps = (("x = 1", "x = 1", ""), (" E", " ", "E"), ("N", "", "EN"), ("ough", "ENough", ""), (" END", " ", "stop"))
    alt = "Stop string END. " + "; ".join(
        f"piece {piece!r}: shown {shown!r}, held {held!r}" for piece, shown, held in steps
    )
    drawing = Drawing("held-back", 560, 36 + 28 * len(steps), "Text held back before a stop string", alt + ".")
    for x, words in ((90, "piece"), (270, "shown"), (450, "held back")):
        drawing.text(x, 12, words, 13, bold=True)
    for i, (piece, shown, held) in enumerate(steps):
        y = 30 + 28 * i
        for x, words, fill in ((20, piece, GREY), (200, shown, GREEN), (380, held, AMBER)):
            drawing.rect(x, y, 140, 22, fill, 0.2 if words else 0.03, rx=3)
            drawing.text(x + 70, y + 11, "ends the text" if words == "stop" else words.replace(" ", "␣"), 12)
        drawing.line([(162, y + 11), (196, y + 11)], arrow=True)
    return drawing


def drawings() -> list[Drawing]:
    return [triangle(), held_back()]
