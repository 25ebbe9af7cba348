"""Chapter 4.1: a stream that is silent at first and whose client leaves, as the server's three tasks see it."""

from tests.week4.test_4_1_api import COMMENT, Client, Stream, served
from tiny_llm.server import sse
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

TIMES, GONE = (33, 36, 39, 42, 45), 40.0
LEFT, SCALE = 110, 12.5


def lanes() -> Drawing:
    """The events, the comments and the client on one axis of time, from a real run on a clock that jumps."""
    client = Client(gone=GONE)
    found = served(sse, client, Stream(TIMES))
    comments = [at for at, data in client.sent if data == COMMENT]
    events = [at for at, data in client.sent if data != COMMENT]
    alt = (
        f"A stream of {GONE:g} seconds. For ten seconds nothing is sent, because an error could still set the status. "
        f"Then the response begins, and comments follow at {', '.join(f'{at:g}' for at in comments)} seconds. Events "
        f"follow at {', '.join(f'{at:g}' for at in events)} seconds. At {GONE:g} seconds the client is gone: all tasks "
        f"end and the events are closed at {found['closed']:g} seconds; the two events that were to come are not made."
    )
    drawing = Drawing("stream-lanes", 700, 210, "Three tasks of one stream", alt)
    for y, label in ((50, "pump"), (95, "watch"), (140, "client")):
        drawing.text(16, y, label, 13, "start")
        drawing.line([(LEFT, y), (LEFT + SCALE * 46, y)], GREY, dash="2 4")
    begun = client.begun[0]
    drawing.rect(x_of(begun) - 3, 30, 6, 40, GREEN, 0.6, rx=2)
    drawing.text(x_of(begun), 20, "status 200", 12, colour=GREY)
    for at in comments:
        drawing.rect(x_of(at) - 4, 88, 8, 14, GREY, 0.7, rx=2)
    for at in TIMES:
        made = at in events
        drawing.rect(x_of(at) - 6, 41, 12, 18, BLUE if made else GREY, 0.8 if made else 0.15, rx=2)
    drawing.text(x_of(22), 112, "comments", 12, colour=GREY)
    drawing.text(x_of(31.5), 24, "events", 12, "end", colour=GREY)
    drawing.line([(x_of(GONE), 140), (x_of(GONE), 34)], RED, 1.5, arrow=True)
    drawing.rect(x_of(GONE) - 5, 135, 10, 10, RED, 0.9, rx=5)
    drawing.text(x_of(GONE) - 8, 158, "gone: ends all", 12, "end", colour=AMBER)
    for at in range(0, 50, 10):
        drawing.text(x_of(at), 190, f"{at} s", 12, colour=GREY)
    return drawing


def x_of(seconds: float) -> float:
    return LEFT + SCALE * seconds


def drawings() -> list[Drawing]:
    return [lanes()]
