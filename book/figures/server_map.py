"""The way of an HTTP request through the server, with "you are here" for each chapter of week 4."""

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

BOX, HEIGHT, GAP, TOP = 108, 44, 30, 40
WAY = ["HTTP request", "checks", "ask", "engine", "parts", "event stream"]
BELOW = ["metrics", "traces", "logs"]
TITLES = {
    "4.1": "an API over the engine",
    "4.2": "answers with a form",
    "4.3": "what the server tells of itself",
    "4.4": "what it refuses",
}
HERE = {
    "4.1": {"event stream"},
    "4.2": {"parts"},
    "4.3": set(BELOW),
    "4.4": {"checks"},
}


def server_map(chapter: str) -> Drawing:
    alt = (
        "An HTTP request passes the checks, becomes an ask, and runs in the engine. The engine's text becomes parts, "
        "which go out as a stream of events. Events of the engine, and the times of finished requests, go to metrics, "
        f"traces and logs. You are here: {TITLES[chapter]}."
    )
    width = 24 + BOX * len(WAY) + GAP * (len(WAY) - 1)
    drawing = Drawing(f"map-{chapter.replace('.', '-')}", width, 200, f"The server: {TITLES[chapter]}", alt)
    xs = [12 + (BOX + GAP) * i for i in range(len(WAY))]
    for x, label in zip(xs, WAY, strict=True):
        _box(drawing, x, TOP, label, label in HERE[chapter], BLUE)
    for x in xs[1:]:
        drawing.line([(x - GAP, TOP + HEIGHT / 2), (x, TOP + HEIGHT / 2)], arrow=True)
    engine = xs[WAY.index("engine")] + BOX / 2
    for i, label in enumerate(BELOW):
        x = engine - BOX / 2 + (i - 1) * (BOX + GAP)
        _box(drawing, x, 140, label, label in HERE[chapter], GREEN)
        drawing.line([(engine + (i - 1) * 30, TOP + HEIGHT), (x + BOX / 2, 140)], GREY, dash="4 3")
    drawing.text(engine - 150, 106, "events", 12, colour=GREY)
    return drawing


def _box(drawing: Drawing, x: float, y: float, label: str, here: bool, colour: str) -> None:
    border = {"stroke": AMBER, "stroke_width": 2.5} if here else {}
    drawing.rect(x, y, BOX, HEIGHT, AMBER if here else colour, 0.4 if here else 0.12, rx=5, **border)
    drawing.text(x + BOX / 2, y + HEIGHT / 2, label, 12, bold=here)


def drawings() -> list[Drawing]:
    return [server_map(chapter) for chapter in TITLES]
