"""Chapter 4.4: a token bucket with five requests, and a key's running requests with a mistake that only load shows."""

import asyncio
from random import Random
from types import ModuleType

from tests.week4.clockwork import now, run
from tests.week4.test_4_4_load import client, key
from tiny_llm.course.catalog import course
from tiny_llm.course.mistakes import mistaken
from tiny_llm.server import rates
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

ASKED = (0, 2, 4, 6, 8, 24, 26)  # seconds
LIMIT, UNITS = 6, 6
LEAK = "a refused request keeps its place"


def bucket() -> Drawing:
    """The level over time: it grows evenly, and each request that is admitted takes two."""
    level = rates.Bucket(LIMIT, 0.0)
    points, admitted, refused = [(0.0, level.left)], [], []
    for at in ASKED:
        wait = level.wait(2, at)
        points.append((at, level.left))
        if wait:
            refused.append((at, wait))
        else:
            level.left -= 2
            admitted.append(at)
            points.append((at, level.left))
    level.wait(0, 40)
    points.append((40, level.left))
    alt = (
        f"A bucket of {LIMIT} a minute, full at first. Requests of two units each at {', '.join(map(str, ASKED))} "
        f"seconds. Those at {', '.join(map(str, admitted))} are admitted. "
        + " ".join(f"The one at {at} must wait {wait:g} seconds." for at, wait in refused)
        + " Between them the level grows by one in ten seconds."
    )
    drawing = Drawing("token-bucket", 700, 200, "A bucket, and seven requests of two units", alt)
    left, bottom, scale, unit = 70.0, 150.0, 15.0, 18.0
    for value in range(0, LIMIT + 1, 2):
        drawing.text(left - 12, bottom - value * unit, str(value), 11, "end", GREY)
        drawing.line([(left, bottom - value * unit), (left + 40 * scale, bottom - value * unit)], GREY, dash="2 5")
    drawing.line([(left + at * scale, bottom - value * unit) for at, value in points], BLUE, 2.5)
    for at in ASKED:
        good = at in admitted
        drawing.rect(left + at * scale - 5, bottom + 12, 10, 10, GREEN if good else RED, 0.9, rx=5)
        drawing.text(left + at * scale, bottom + 38, f"{at} s", 11, colour=GREY)
    return drawing


def places(module: ModuleType) -> list[tuple[float, int]]:
    """Return how many requests of a key run, as its `Use` counts them, in a rush of some seconds and after it."""

    async def watched() -> list[tuple[float, int]]:
        book, limits = module.Rates(now), key(concurrent=4, requests_per_minute=30)
        found: list[tuple[float, int]] = []
        use: list[rates.Use] = []
        with book.running(limits) as meter:
            use.append(meter.use)
        clients = asyncio.gather(*(client(book, limits, Random(i), [], [0]) for i in range(64)))
        while now() < 60:
            found.append((now(), use[0].running))
            await asyncio.sleep(0.25)
        await clients
        return found

    return list(run(watched()))


def leak() -> Drawing:
    right, wrong = places(rates), places(mistaken(course().task("w4.4.2"), LEAK))
    alt = (
        "How many requests of a key are counted as running, over 60 seconds. A rush of 64 clients lasts less "
        f"than forty seconds. In the right version the count is at most {max(c for _, c in right)} and ends at "
        f"{right[-1][1]}. "
        f"Where refused requests keep their places it ends at {wrong[-1][1]}, though nothing runs."
    )
    drawing = Drawing("lost-places", 700, 200, "Places that are never given back", alt)
    left, bottom, scale, unit = 70.0, 150.0, 10.0, 24.0
    for value in range(0, 5, 2):
        drawing.text(left - 12, bottom - value * unit, str(value), 11, "end", GREY)
        drawing.line([(left, bottom - value * unit), (left + 60 * scale, bottom - value * unit)], GREY, dash="2 5")
    for found, colour in ((right, GREEN), (wrong, RED)):
        points = []
        before = found[0][1]
        for at, count in found:
            points += [(left + at * scale, bottom - before * unit), (left + at * scale, bottom - count * unit)]
            before = count
        drawing.line(points, colour, 2.2)
    drawing.text(left + 58 * scale, bottom - 4 * unit - 12, "with the mistake", 12, "end", RED)
    drawing.text(left + 58 * scale, bottom - 12, "right", 12, "end", GREEN)
    for at in range(0, 70, 10):
        drawing.text(left + at * scale, bottom + 24, f"{at} s", 11, colour=GREY)
    drawing.text(left + 18 * scale, 26, "rush", 12, colour=AMBER)
    return drawing


def drawings() -> list[Drawing]:
    return [bucket(), leak()]
