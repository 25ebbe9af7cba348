"""Chapter 3.12: sentences in overlapping chunks, and two rankings fused."""

from tiny_llm.apps.rag.steps import fuse, windows
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

LENGTHS = (5, 4, 6, 3, 7, 4)
SIZE, OVERLAP = 13, 4
RANKINGS = (("BM25", ("a", "b", "c", "d")), ("vectors", ("e", "b", "f", "a")))


def chunks() -> Drawing:
    """The sentences of a text, and the chunks that they are in."""
    spans = windows(LENGTHS, SIZE, OVERLAP)
    told = "; ".join(f"chunk {i} has sentences {begin} to {end - 1}" for i, (begin, end) in enumerate(spans))
    alt = f"Sentences of {LENGTHS} tokens in chunks of {SIZE} with an overlap of {OVERLAP}: {told}."
    drawing = Drawing("chunks", 700, 80 + 36 * len(spans), "Sentences in overlapping chunks", alt)
    unit = 19
    lefts = [90 + unit * sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    drawing.text(40, 34, "tokens", 12, colour=GREY)
    for x, length in zip(lefts, LENGTHS, strict=True):
        drawing.rect(x, 20, unit * length - 3, 28, BLUE, 0.25, rx=3)
        drawing.text(x + unit * length / 2, 34, str(length), 13)
    for row, (begin, end) in enumerate(spans):
        y = 68 + 36 * row
        drawing.text(40, y + 12, f"chunk {row}", 12, colour=GREY)
        before = spans[row - 1][1] if row else 0
        for i in range(begin, end):
            hue = AMBER if i < before else GREEN
            drawing.rect(lefts[i], y, unit * LENGTHS[i] - 3, 24, hue, 0.4, rx=3)
    return drawing


def fusion() -> Drawing:
    """Two rankings, and the one that their reciprocal ranks give."""
    scored = fuse([items for _, items in RANKINGS])
    lists = "; ".join(f"{name}: {', '.join(items)}" for name, items in RANKINGS)
    order = ", ".join(f"{item} {score:.4f}" for item, score in scored)
    alt = f"Two rankings, best first. {lists}. Fused by reciprocal ranks with k = 60: {order}."
    drawing = Drawing("fusion", 620, 240, "Two rankings fused", alt)
    for column, (name, items) in enumerate(RANKINGS):
        x = 40 + 130 * column
        drawing.text(x + 45, 24, name, 13, bold=True)
        for rank, item in enumerate(items):
            both = all(item in ranking for _, ranking in RANKINGS)
            drawing.rect(x, 42 + 32 * rank, 90, 26, AMBER if both else BLUE, 0.35, rx=4)
            drawing.text(x + 45, 55 + 32 * rank, f"{rank + 1}.  {item}", 13)
    drawing.line([(300, 110), (370, 110)], GREY, arrow=True)
    drawing.text(460, 24, "fused", 13, bold=True)
    for rank, (item, score) in enumerate(scored):
        both = all(item in ranking for _, ranking in RANKINGS)
        drawing.rect(390, 42 + 32 * rank, 140, 26, AMBER if both else BLUE, 0.35, rx=4)
        drawing.text(460, 55 + 32 * rank, f"{item}  {score:.4f}", 13)
    return drawing


def drawings() -> list[Drawing]:
    return [chunks(), fusion()]
