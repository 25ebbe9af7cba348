"""The way of a token through the engine, with "you are here" for each chapter."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

WIDTH, BOX, HEIGHT = 760, 84, 40
STEP = [  # (label, chapters, a word in the description)
    ("tokenizer", ()),
    ("embedding", ("1.5",)),
    ("N layers", ("1.5",)),
    ("norm, head", ("1.5",)),
    ("sampler", ("1.7",)),
    ("text out", ("1.6",)),
]
LAYER = [
    ("norm", ("1.4",)),
    ("q, k, v", ("1.4", "1.5")),
    ("RoPE", ("1.2",)),
    ("attention", ("1.1", "1.3")),
    ("o, add", ("1.5",)),
    ("norm", ("1.4",)),
    ("SwiGLU", ("1.4",)),
    ("down, add", ("1.5",)),
]
LOOP = "1.6"
TITLES = {
    "1.1": "attention",
    "1.2": "positions",
    "1.3": "grouped heads",
    "1.4": "norm and MLP",
    "1.5": "the whole model",
    "1.6": "the generation loop",
    "1.7": "the sampler",
    "2.1": "what a step costs",
    "2.2": "RMSNorm as a kernel",
    "2.3": "the small operations, fused",
    "2.4": "the KV cache",
    "2.5": "the KV cache and its price",
    "2.6": "the weights in few bits",
    "2.7": "weights times one token",
    "2.8": "weights times many tokens",
    "2.9": "attention over a prompt",
    "2.10": "attention of one token",
    "2.11": "weights times one token, on a CPU",
}
CACHE = "KV cache"
FASTER = {  # the boxes that a chapter of week 2 makes faster or smaller
    "2.1": {"N layers", "norm, head", CACHE},
    "2.2": {"norm"},
    "2.3": {"norm", "SwiGLU", "o, add"},
    "2.4": {CACHE},
    "2.5": {CACHE},
    "2.6": {"q, k, v", "o, add", "SwiGLU", "down, add", "norm, head"},
    "2.7": {"q, k, v", "o, add", "SwiGLU", "down, add", "norm, head"},
    "2.8": {"q, k, v", "o, add", "SwiGLU", "down, add"},
    "2.9": {"attention"},
    "2.10": {"attention", CACHE},
    "2.11": {"q, k, v", "o, add", "SwiGLU", "down, add", "norm, head"},
}


def is_here(label: str, chapters: tuple[str, ...], chapter: str | None) -> bool:
    return chapter in chapters or label in FASTER.get(chapter or "", ())


def engine_map(chapter: str | None) -> Drawing:
    here = f" You are here: {TITLES[chapter]}." if chapter else ""
    alt = (
        "Text goes through the tokenizer, the embedding, N layers, the last norm and head, the sampler and the "
        "detokenizer; the sampler's token is fed back to the embedding. A layer is norm, queries keys and values, "
        "RoPE, attention over the KV cache, output projection with residual, norm, SwiGLU, down projection with "
        "residual." + here
    )
    name = f"map-{chapter}" if chapter else "map"
    drawing = Drawing(
        name.replace(".", "-"), WIDTH, 262, "The engine" + (f": {TITLES[chapter]}" if chapter else ""), alt
    )
    xs = _row(drawing, STEP, 34, chapter, "text", "text")
    _loop(drawing, xs[4] + BOX / 2, xs[1] + BOX / 2, chapter)
    x, y = xs[2] + BOX / 2, 34 + HEIGHT / 2
    drawing.line([(x - 20, y), (22, 158)], GREY, 0.8, dash="4 3")
    drawing.line([(x + 20, y), (WIDTH - 22, 158)], GREY, 0.8, dash="4 3")
    inner = _row(drawing, LAYER, 184, chapter)
    drawing.text(WIDTH / 2, 150, "one layer", 12, colour=GREY)
    middle = inner[3] + BOX / 2 - 2
    here_too = {"stroke": AMBER, "stroke_width": 2.5} if is_here(CACHE, (), chapter) else {}
    drawing.rect(middle - 62, 226, 124, 24, AMBER if here_too else GREEN, 0.4 if here_too else 0.2, rx=4, **here_too)
    drawing.text(middle, 238, "KV cache (week 2)", 11, bold=bool(here_too))
    drawing.line([(middle, 226), (middle, 206)], arrow=True)
    return drawing


def _row(
    drawing: Drawing,
    boxes: list[tuple[str, tuple[str, ...]]],
    y: float,
    chapter: str | None,
    before: str = "",
    after: str = "",
) -> list[float]:
    """Boxes from left to right around the line y; returns their left edges."""
    margin = 50 if before else 6
    gap = (WIDTH - 2 * margin - BOX * len(boxes)) / max(len(boxes) - 1, 1)
    xs = [margin + i * (BOX + gap) for i in range(len(boxes))]
    for i, ((label, chapters), x) in enumerate(zip(boxes, xs, strict=True)):
        here = is_here(label, chapters, chapter)
        border = {"stroke": AMBER, "stroke_width": 2.5} if here else {}
        drawing.rect(x, y - HEIGHT / 2, BOX, HEIGHT, AMBER if here else BLUE, 0.4 if here else 0.12, rx=5, **border)
        drawing.text(x + BOX / 2, y - (7 if chapters else 0), label, 13, bold=here)
        if chapters:
            drawing.text(x + BOX / 2, y + 10, " · ".join(chapters), 10, colour=GREY)
        if i:
            drawing.line([(xs[i - 1] + BOX, y), (x, y)], arrow=True)
    for words, start, end in ((before, 12, xs[0]), (after, xs[-1] + BOX, WIDTH - 12)):
        if words:
            drawing.text((start + end) / 2, y - 12, words, 11)
            drawing.line([(start, y), (end, y)], arrow=True)
    return xs


def _loop(drawing: Drawing, start: float, end: float, chapter: str | None) -> None:
    here = chapter == LOOP
    colour = AMBER if here else "currentColor"
    y = 34 + HEIGHT / 2
    drawing.line([(start, y), (start, y + 34), (end, y + 34), (end, y)], colour, 2.5 if here else 1, arrow=True)
    drawing.text((start + end) / 2, y + 46, "the token goes back in: 1.6", 12, bold=here)


def drawings() -> list[Drawing]:
    return [engine_map(chapter) for chapter in (None, *TITLES)]
