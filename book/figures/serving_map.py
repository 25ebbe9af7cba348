"""The way of a request through the serving engine, with "you are here" for each chapter of week 3."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

BOX, HEIGHT, GAP, TOP = 104, 44, 28, 60
WAY = ["requests", "waiting line", "scheduler", "ragged batch", "model, sampler", "tokens"]
BELOW = ["block pool", "prefix tree"]
TITLES = {
    "3.1": "who goes next",
    "3.2": "what a step holds",
    "3.3": "blocks for K and V",
    "3.4": "attention over pages",
    "3.5": "what is known already",
}
HERE = {
    "3.1": {"waiting line", "scheduler"},
    "3.2": {"scheduler", "ragged batch"},
    "3.3": {"block pool"},
    "3.4": {"model, sampler", "block pool"},
    "3.5": {"prefix tree", "block pool"},
}


def serving_map(chapter: str) -> Drawing:
    alt = (
        "Requests join the waiting line; the scheduler takes some and makes one ragged batch of each step; model and "
        "sampler give a token to each sequence, and it comes back to the scheduler for the next step. The scheduler "
        f"hands out blocks of the pool and asks the prefix tree for known ones. You are here: {TITLES[chapter]}."
    )
    width = 24 + (BOX + GAP) * len(WAY)
    drawing = Drawing(f"map-{chapter.replace('.', '-')}", width, 210, f"Serving: {TITLES[chapter]}", alt)
    xs = [12 + (BOX + GAP) * i for i in range(len(WAY))]
    for x, label in zip(xs, WAY, strict=True):
        _box(drawing, x, TOP, label, label in HERE[chapter], BLUE)
    for x in xs[1:]:
        drawing.line([(x - GAP, TOP + HEIGHT / 2), (x, TOP + HEIGHT / 2)], arrow=True)
    start, end = xs[4] + BOX / 2, xs[2] + BOX / 2
    drawing.line([(start, TOP), (start, TOP - 24), (end, TOP - 24), (end, TOP)], arrow=True)
    drawing.text((start + end) / 2, TOP - 36, "after each step: who goes on, who has ended", 12, colour=GREY)
    for i, label in enumerate(BELOW):
        x = end - BOX - GAP / 2 + i * (BOX + GAP)
        _box(drawing, x, 150, label, label in HERE[chapter], GREEN)
        drawing.line([(x + BOX / 2, 150), (end + (i - 0.5) * 40, TOP + HEIGHT)], GREY, dash="4 3")
    return drawing


def _box(drawing: Drawing, x: float, y: float, label: str, here: bool, colour: str) -> None:
    border = {"stroke": AMBER, "stroke_width": 2.5} if here else {}
    drawing.rect(x, y, BOX, HEIGHT, AMBER if here else colour, 0.4 if here else 0.12, rx=5, **border)
    drawing.text(x + BOX / 2, y + HEIGHT / 2, label, 12, bold=here)


def drawings() -> list[Drawing]:
    return [serving_map(chapter) for chapter in TITLES]
