"""The way of a request: through the whole engine, and through the serving loop with "you are here" for each chapter."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

BOX, HEIGHT, GAP, TOP = 104, 44, 28, 60
WAY = ["requests", "waiting line", "scheduler", "ragged batch", "model, sampler", "tokens"]
BELOW = ["block pool", "prefix tree"]
CALLERS = ["LLM: a prompt", "LLM: a list", "Engine"]
REQUEST_WAY = ["", "request", "scheduler", "runner", "model, draw", "writer: text"]
KNOWN = ["known already", "prefix tree", "or kept caches"]
STORES = ["store", "pool of pages", "or whole caches"]
TITLES = {
    "3.1": "who goes next",
    "3.2": "what a step holds",
    "3.3": "blocks for K and V",
    "3.4": "attention over pages",
    "3.5": "what is known already",
    "3.6": "which experts compute",
    "3.7": "guesses, verified together",
    "3.8": "why no answer changes",
    "3.9": "trees of guesses, and heads",
    "3.12": "what stands in the prompt",
}
HERE = {
    "3.1": {"waiting line", "scheduler"},
    "3.2": {"scheduler", "ragged batch"},
    "3.3": {"block pool"},
    "3.4": {"model, sampler", "block pool"},
    "3.5": {"prefix tree", "block pool"},
    "3.6": {"model, sampler"},
    "3.7": {"ragged batch", "tokens"},
    "3.8": {"model, sampler", "tokens"},
    "3.9": {"ragged batch", "model, sampler", "block pool"},
    "3.12": {"requests", "prefix tree"},
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


def request_map() -> Drawing:
    """The one way from a prompt to text, whoever asks and whatever keeps K and V."""
    alt = (
        "A single prompt or a list of prompts given to LLM, and prompts given to Engine, become requests. The "
        "scheduler plans a step, the runner hands it to the model, a token is drawn for each sequence and comes back "
        "to the scheduler, and a writer makes text of it. The runner reads and writes K and V in a store, which is a "
        "pool of pages or a whole cache for each sequence. The scheduler asks the prefix tree, or the kept caches, for "
        "what is computed already."
    )
    width = 24 + (BOX + GAP) * len(REQUEST_WAY)
    drawing = Drawing("request", width, 252, "The way of a request", alt)
    xs = [12 + (BOX + GAP) * i for i in range(len(REQUEST_WAY))]
    middle = TOP + 30
    for i, label in enumerate(CALLERS):
        y = middle + (i - 1) * (HEIGHT + 8)
        _box(drawing, xs[0], y, label, False, GREY)
        drawing.line([(xs[0] + BOX, y + HEIGHT / 2), (xs[1], middle + HEIGHT / 2)], arrow=True)
    for x, label in zip(xs[1:], REQUEST_WAY[1:], strict=True):
        _box(drawing, x, middle, label, False, BLUE)
    for x in xs[2:]:
        drawing.line([(x - GAP, middle + HEIGHT / 2), (x, middle + HEIGHT / 2)], arrow=True)
    start, end = xs[4] + BOX / 2, xs[2] + BOX / 2
    above = middle - 28
    drawing.line([(start, middle), (start, above), (end, above), (end, middle)], arrow=True)
    drawing.text((start + end) / 2, above - 12, "each token comes back for the next step", 12, colour=GREY)
    for x, lines in ((xs[2], KNOWN), (xs[3], STORES)):
        drawing.line([(x + BOX / 2, middle + HEIGHT), (x + BOX / 2, 180)], GREY, dash="4 3")
        drawing.rect(x - 6, 180, BOX + 12, 60, GREEN, 0.12, rx=5)
        for i, line in enumerate(lines):
            drawing.text(x + BOX / 2, 194 + 16 * i, line, 12, bold=i == 0)
    return drawing


def _box(drawing: Drawing, x: float, y: float, label: str, here: bool, colour: str) -> None:
    border = {"stroke": AMBER, "stroke_width": 2.5} if here else {}
    drawing.rect(x, y, BOX, HEIGHT, AMBER if here else colour, 0.4 if here else 0.12, rx=5, **border)
    drawing.text(x + BOX / 2, y + HEIGHT / 2, label, 12, bold=here)


def drawings() -> list[Drawing]:
    return [*(serving_map(chapter) for chapter in TITLES), request_map()]
