"""Chapter 4.3: four values in a histogram's buckets, and the states of a sequence that two gauges count."""

from tiny_llm.server.metrics import Histogram
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

BOUNDS, VALUES = (0.1, 0.25, 0.5, 1), (0.08, 0.2, 0.25, 0.6)
STATES = {"waiting": 170, "running": 430}


def buckets() -> Drawing:
    """The values on a line, the count of each bucket, and the sum up to each bound."""
    histogram = Histogram(BOUNDS)
    for value in VALUES:
        histogram.observe(value)
    totals = [int(total) for _, total in histogram.cumulative()]
    names = [name for name, _ in histogram.cumulative()]
    alt = (
        f"The values {', '.join(map(str, VALUES))} seconds in buckets with the bounds {', '.join(map(str, BOUNDS))} "
        f"and infinity. The counts are {' '.join(map(str, histogram.counts))}: 0.25 falls into the bucket that ends at "
        f"0.25. Added up from the left they are {' '.join(map(str, totals))}, which is what Prometheus reads."
    )
    drawing = Drawing("histogram-buckets", 700, 214, "Four times in five buckets", alt)
    left, width = 130, 108
    for y, label in ((62, "values"), (112, "counts"), (154, "cumulative"), (190, "le")):
        drawing.text(20, y, label, 12, "start", GREY)
    lows = (0.0, *BOUNDS)
    for i, (count, total, name) in enumerate(zip(histogram.counts, totals, names, strict=True)):
        x = left + i * width
        drawing.rect(x, 94, width - 6, 36, BLUE, 0.12 + 0.14 * count, rx=4)
        drawing.text(x + width / 2 - 3, 112, str(count), 15, bold=True)
        drawing.text(x + width / 2 - 3, 154, str(total), 15, colour=GREEN, bold=True)
        drawing.text(x + width - 6, 190, name, 12)
        drawing.line([(x + width - 6, 84), (x + width - 6, 178)], GREY, dash="3 3")
        if i < len(BOUNDS):
            drawing.text(x + width - 6, 74, f"{BOUNDS[i]:g}", 11, colour=GREY)
            inside = [value for value in VALUES if lows[i] < value <= BOUNDS[i]]
            for value in inside:
                place = x + (value - lows[i]) / (BOUNDS[i] - lows[i]) * (width - 6)
                drawing.rect(place - 4, 54, 8, 8, AMBER, 0.9, rx=4)
                drawing.text(place, 42, f"{value:g}", 11)
    return drawing


def states() -> Drawing:
    """Two states with the events that lead in and out."""
    alt = (
        "An arrival makes a sequence wait, an admission makes it run, a preemption makes it wait again. It can finish "
        "in both states. A further answer of a request is admitted without an arrival."
    )
    drawing = Drawing("sequence-gauges", 700, 190, "Which sequences are counted where", alt)
    for label, x in STATES.items():
        drawing.rect(x, 70, 120, 50, BLUE if label == "waiting" else GREEN, 0.2, rx=6)
        drawing.text(x + 60, 95, label, 15, bold=True)
    drawing.line([(40, 95), (170, 95)], GREY, 1.5, arrow=True)
    drawing.text(100, 84, "arrival", 12)
    drawing.line([(290, 84), (430, 84)], GREY, 1.5, arrow=True)
    drawing.text(360, 72, "admit", 12)
    drawing.line([(430, 108), (290, 108)], AMBER, 1.5, arrow=True)
    drawing.text(360, 124, "preempt", 12)
    drawing.line([(550, 95), (660, 95)], GREY, 1.5, arrow=True)
    drawing.text(605, 84, "finish", 12)
    drawing.line([(230, 120), (230, 166), (660, 166), (660, 104)], RED, 1.5, arrow=True)
    drawing.text(420, 154, "finish: cancelled while it waits", 12)
    drawing.line([(490, 20), (490, 70)], GREY, 1.5, arrow=True)
    drawing.text(482, 34, "admit: a second answer of a request", 12, "end")
    return drawing


def drawings() -> list[Drawing]:
    return [buckets(), states()]
