"""The appendix on copying: two steps by hand, curves of training, what heads look at, and its tables.

All but the first picture are drawn from what bench/pocket_ablation.py and bench/pocket_training.py have left in data/.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing, number

DATA = Path(__file__).parent / "data"
CARD = Path(__file__).parents[2] / "tiny_llm" / "pocket" / "weights" / "target" / "README.md"
TOKENS = ("red", "fox", "ran", "red")
CELL = 14
FULL = 1_250_000  # tokens; what shorter runs know at their end says nothing yet
TWICE = 5.7  # 4 · 1.2²: the period after two growths


def by_hand() -> Drawing:
    """Both layers on four tokens."""
    alt = (
        "Four tokens: red, fox, ran, red. In the first layer each takes a note of the token before it: fox of red, ran "
        "of fox, the last red of ran. In the second layer the last red looks for the note red, finds it at fox, and "
        "takes the word fox from there as its prediction."
    )
    drawing = Drawing("copying-by-hand", 660, 236, "Copying takes two layers", alt)
    places = [150 + 132 * i for i in range(4)]
    rows = (("tokens", 24), ("after layer 1", 104), ("layer 2", 196))
    for words, y in rows:
        drawing.text(8, y, words, 12, "start", GREY)
    for i, (x, token) in enumerate(zip(places, TOKENS, strict=True)):
        drawing.rect(x - 44, 8, 88, 32, BLUE, 0.2, rx=4)
        drawing.text(x, 24, token, 14)
        drawing.rect(x - 44, 80, 88, 48, BLUE, 0.2, rx=4)
        drawing.text(x, 94, token, 14)
        before = TOKENS[i - 1] if i else "–"
        drawing.text(x, 114, f"note: {before}", 12, bold=i == 1)
        if i:
            drawing.line([(places[i - 1] + 20, 42), (x - 20, 77)], AMBER, 1.5, arrow=True)
    last, found = places[3], places[1]
    drawing.line([(last - 20, 130), (last - 20, 158), (found, 158), (found, 132)], GREEN, 2, arrow=True)
    drawing.text((last + found) / 2, 148, "who has the note red?", 12)
    drawing.line([(found - 24, 130), (found - 24, 196), (last - 50, 196)], RED, 2, arrow=True)
    drawing.text((last + found) / 2, 184, "take its word", 12)
    drawing.rect(last - 44, 178, 88, 34, GREEN, 0.3, rx=4)
    drawing.text(last, 195, "next: fox", 13, bold=True)
    return drawing


def read(name: str) -> dict[str, Any]:
    """One of the files that the bench script writes."""
    found: dict[str, Any] = json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))
    return found


def runs(variant: str) -> list[dict[str, Any]]:
    """The variant's runs by seed."""
    return sorted((r for r in read("pocket_ablation")["runs"] if r["variant"] == variant), key=lambda r: r["seed"])


def curves() -> Drawing:
    """Loss and exam while training, with and without the curriculum."""
    kinds = (("recipe", "with curriculum", BLUE), ("no-curriculum", "without", AMBER))
    last = max(point[0] for name, _, _ in kinds for run in runs(name) for point in run["log"]) / 1e6
    ends = {name: statistics.mean(r["right"] for r in runs(name) if r["tokens"] >= FULL) for name, _, _ in kinds}
    alt = (
        f"Two panels over {number(last)} million tokens of training. Left, the loss on the lessons: with the "
        "curriculum it falls, jumps up each time the period grows, and falls again; without it stays high. Right, the "
        f"share right in the exam: with the curriculum it is near 0 for most of the time, then rises steeply to "
        f"{ends['recipe']:.2f}; without it ends at {ends['no-curriculum']:.2f}."
    )
    drawing = Drawing("copying-curves", 700, 250, "Copying emerges suddenly", alt)
    panels = (("loss on the lessons", 1, 8.0, (0, 2, 4, 6, 8), 46), ("exam: share right", 3, 1.0, (0, 0.5, 1), 400))
    for title, column, top, ticks, left in panels:
        drawing.text(left + 135, 12, title, 13, bold=True)
        for tick in ticks:
            y = 206 - 176 * tick / top
            drawing.line([(left, y), (left + 270, y)], GREY, 0.5)
            drawing.text(left - 6, y, number(tick), 10, "end", GREY)
        for tenth in range(0, int(last * 10) + 1, 2):
            drawing.text(left + 27 * tenth / last, 218, number(tenth / 10), 10, colour=GREY)
        drawing.text(left + 135, 234, "million tokens", 11, colour=GREY)
        for name, _, colour in kinds:
            for run in runs(name):
                points = [(point[0] / 1e6, min(point[column], top)) for point in run["log"]]
                drawing.line([(left + 270 * x / last, 206 - 176 * y / top) for x, y in points], colour, 1.6)
    for i, (_, words, colour) in enumerate(kinds):
        drawing.line([(412, 40 + 18 * i), (432, 40 + 18 * i)], colour, 2.5)
        drawing.text(438, 40 + 18 * i, words, 11, "start")
    return drawing


def share(head: dict[str, Any], back: int) -> float:
    """The mean weight that the second round, but for its last token, gives to the token so many places back."""
    weights: list[list[float]] = head["weights"]
    period = len(weights) // 2
    return statistics.mean(weights[t][t - back] for t in range(period, 2 * period - 1))


def chosen() -> tuple[dict[str, Any], dict[str, Any]]:
    """The head that looks most at the token before, and the one that looks most at the token to copy."""
    data = read("pocket_heads")
    found, behind = data["heads"], len(data["tokens"]) // 2 - 1
    return max(found, key=lambda head: share(head, 1)), max(found, key=lambda head: share(head, behind))


def growing() -> Drawing:
    """The share of wrong answers as pocket trained on, by family of lessons."""
    data = json.loads((DATA / "pocket_training.json").read_text(encoding="utf-8"))
    first, last = data[0]["tokens"] / 1e6, data[-1]["tokens"] / 1e6
    families = (
        ("text", "text work", RED),
        ("builtin", "built-in tools", AMBER),
        ("passages", "passages", GREEN),
        ("tool", "other tools", BLUE),
    )
    ends = ", ".join(f"{words} {data[-1]['errors'][family]:.2f}" for family, words, _ in families)
    alt = (
        f"The share of wrong answers from {first:.0f} to {last:.0f} million tokens. It falls in both runs, most of all "
        f"in the last third of each, while the rates go to zero, and jumps up when the second run starts with full "
        f"rates. At the end: {ends}."
    )
    drawing = Drawing("pocket-errors", 700, 260, "Wrong answers while pocket trained on", alt)
    left, width, top = 46, 640, 0.9
    for tick in (0, 0.2, 0.4, 0.6, 0.8):
        y = 216 - 190 * tick / top
        drawing.line([(left, y), (left + width, y)], GREY, 0.5)
        drawing.text(left - 6, y, number(tick), 10, "end", GREY)
    for million in range(60, int(last) + 1, 10):
        drawing.text(left + width * (million - first) / (last - first), 228, number(million), 10, colour=GREY)
    drawing.text(left + width / 2, 246, "million tokens", 11, colour=GREY)
    for family, _, colour in families:
        points = [(one["tokens"] / 1e6, one["errors"][family]) for one in data if family in one["errors"]]
        places = [(left + width * (x - first) / (last - first), 216 - 190 * y / top) for x, y in points]
        drawing.line(places, colour, 1.8)
    for i, (_, words, colour) in enumerate(families):
        drawing.line([(520, 30 + 18 * i), (540, 30 + 18 * i)], colour, 2.5)
        drawing.text(546, 30 + 18 * i, words, 11, "start")
    return drawing


def heads() -> Drawing:
    """The attention of both heads on a row of eight tokens that come twice."""
    previous, induction = chosen()
    places = [f"layer {head['layer'] + 1}, head {head['head'] + 1}" for head in (previous, induction)]
    alt = (
        "Attention of two heads over eight random tokens that come twice, queries downwards. The first, "
        f"{places[0]}, looks at the token before: a line just under the diagonal. The second, {places[1]}, in the "
        "second round looks at the token that followed the same one in the first round: a line seven places to the "
        "left of the diagonal."
    )
    drawing = Drawing("copying-heads", 640, 290, "Two heads that copy", alt)
    words = ("looks one back", "looks behind the same token")
    letters = "ABCDEFGH" * 2
    for x, head, place, what in zip((60, 380), (previous, induction), places, words, strict=True):
        drawing.text(x + 8 * CELL, 12, f"{place}: {what}", 12, bold=True)
        for i, letter in enumerate(letters):
            drawing.text(x + CELL * (i + 0.5), 32, letter, 10, colour=GREY)
            drawing.text(x - 9, 42 + CELL * (i + 0.5), letter, 10, colour=GREY)
        for t, row in enumerate(head["weights"]):
            for s, value in enumerate(row[: t + 1]):
                y = 42 + CELL * t
                drawing.rect(x + CELL * s, y, CELL, CELL, BLUE, value, stroke_opacity=0.2, tip=f"{value:.2f}")
    return drawing


def table() -> str:
    """What the runs show, one row for each variant; several seeds stand beside each other."""
    lines = ["| variant | tokens | period grew twice | half right | exam at the end | period 64 |"]
    lines.append("| --- | --- | --- | --- | ---: | ---: |")
    for name, label in read("pocket_ablation")["labels"].items():
        if found := runs(name):
            ends = [
                [f"{run[key]:.2f}" if run["tokens"] >= FULL else "–" for run in found]
                for key in ("right", "right_long")
            ]
            when = [[first(run, column, least) for run in found] for column, least in ((4, TWICE), (3, 0.5))]
            cells = [[millions(run["tokens"]) for run in found], *when, *ends]
            lines.append(f"| {label} | {' | '.join(', '.join(cell) for cell in cells)} |")
    return "\n".join(lines)


def first(run: dict[str, Any], column: int, least: float) -> str:
    """When a column of the log reached a value for the first time."""
    if run["log"][0][column] >= least:
        return "–"
    return next((millions(point[0]) for point in run["log"] if point[column] >= least), "not yet")


def millions(tokens: int) -> str:
    return f"{tokens / 1e6:.2f} M"


def head_table() -> str:
    """Where each head looks, and the exam without it."""
    data = read("pocket_heads")
    behind = len(data["tokens"]) // 2 - 1
    lines = [
        "| layer, head | itself | one back | behind the same token | exam without it |",
        "| --- " + "| ---: " * 4 + "|",
    ]
    for head in data["heads"]:
        shares = " | ".join(f"{share(head, back):.2f}" for back in (0, 1, behind))
        lines.append(f"| {head['layer'] + 1}, {head['head'] + 1} | {shares} | {head['right_without']:.2f} |")
    return "\n".join(lines)


def card() -> str:
    """The results in the model card of the weights that ship."""
    text = CARD.read_text(encoding="utf-8")
    return text.partition("## Results\n\n")[2].partition("\n## ")[0].strip()


def tables() -> dict[str, str]:
    """Markdown by file name, for the chapter to include."""
    made = {"copying": table(), "copying-heads": head_table(), "pocket-card": card()}
    return {f"{name}.md": text + "\n" for name, text in made.items()}


def drawings() -> list[Drawing]:
    return [by_hand(), curves(), heads(), growing()]
