"""Chapter 1.7: probabilities after each sampler, the inverse of the distribution, a beam search."""

from tiny_llm.config import SamplingParams
from tiny_llm.views import sampling
from tiny_llm.views.svg import AMBER, GREEN, GREY, HUES, Drawing, number

TOKENS = ("cat", "dog", "bird", "fish", "tree", "sky", "the", "zebra")
LOGITS = (3.0, 2.5, 2.0, 1.0, 0.5, 0.0, -1.0, -2.0)


def one_axis() -> Drawing:
    """The weights side by side, and a uniform number that falls into one of them."""
    ((_, shares),) = sampling.stages(LOGITS[:4], SamplingParams(temperature=1.0))
    starts = [sum(shares[:i]) for i in range(4)]
    alt = "A line from 0 to 1 in four parts: " + ", ".join(
        f"{token} from {number(start)}" for token, start in zip(TOKENS, starts, strict=False)
    )
    drawing = Drawing(
        "inverse-cdf", 600, 110, "One uniform number picks a token", alt + ". The number 0.7 falls to dog."
    )
    for i, (start, share) in enumerate(zip(starts, shares, strict=True)):
        x = 20 + 560 * start
        drawing.rect(x, 50, 560 * share, 32, HUES[i], 0.35)
        drawing.text(x + 280 * share, 66, TOKENS[i], 12)
        drawing.text(x, 96, number(start), 11)
    drawing.text(580, 96, "1", 11)
    drawing.line([(20 + 560 * 0.7, 24), (20 + 560 * 0.7, 50)], AMBER, 2, arrow=True)
    drawing.text(20 + 560 * 0.7, 14, "u = 0.7", 13, bold=True)
    return drawing


def beams() -> Drawing:
    """Two steps where the greedy first choice loses."""
    alt = (
        "A tree. From the start A has 0.6 and B 0.4. After A the best is 0.5, so A then C has 0.30; after B the best "
        "is 0.9, so B then D has 0.36. Greedy search takes A and ends with 0.30, a beam of two finds 0.36."
    )
    drawing = Drawing("beams", 560, 170, "A beam of two finds what greed misses", alt)
    places = {
        "": (50, 85),
        "A": (210, 45),
        "B": (210, 125),
        "AC": (400, 25),
        "AE": (400, 65),
        "BD": (400, 105),
        "BF": (400, 145),
    }
    chances = {"A": 0.6, "B": 0.4, "AC": 0.5, "AE": 0.5, "BD": 0.9, "BF": 0.1}
    totals = {"": 1.0}
    for name, chance in chances.items():
        (x0, y0), (x1, y1) = places[name[:-1]], places[name]
        totals[name] = totals[name[:-1]] * chance
        kept = name in ("A", "B", "BD", "AC")
        drawing.line([(x0 + 30, y0), (x1 - 30, y1)], "currentColor" if kept else GREY, 2 if kept else 1, arrow=True)
        drawing.text((x0 + x1) / 2, (y0 + y1) / 2 - 9, number(chance), 11, colour=GREY)
    for name, (x, y) in places.items():
        hue = GREEN if name == "BD" else AMBER if name == "AC" else GREY
        drawing.rect(x - 30, y - 14, 60, 28, hue, 0.3, rx=5)
        drawing.text(x, y, name[-1:] or "start", 13)
        if len(name) == 2:
            drawing.text(x + 40, y, f"{totals[name]:.2f}", 12, "start")
    return drawing


def drawings() -> list[Drawing]:
    params = SamplingParams(temperature=0.7, top_k=6, top_p=0.9, min_p=0.3)
    stages = sampling.stages(LOGITS, params)
    return [sampling.draw_stages("sampler-stages", TOKENS, stages), one_axis(), beams()]
