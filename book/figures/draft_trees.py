"""Chapter 3.9: the tree of the likeliest lines, what each of its tokens sees, and what heads read and guess."""

import math

from tiny_llm.cache.scattered import ancestry
from tiny_llm.engine.guess_tree import Ranked, likeliest_tree
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, Drawing

WORDS = ("three", "and", "four", "three")  # the tokens 0 to 3 of the places below
PLACES = (((0, 1), (0.6, 0.3)), ((2, 3), (0.7, 0.25)))
LIMIT = 5
FIRST = 12  # slot, and position, of the text's last token


def tree() -> tuple[list[str], tuple[int, ...], list[float]]:
    """The words, parents and probabilities of the nodes."""
    places = [Ranked(tokens, [math.log(p) for p in odds]) for tokens, odds in PLACES]
    made = likeliest_tree(places, LIMIT, math.log(0.01))
    chances: list[float] = []
    for node, depth in enumerate(made.depths()):
        tokens, odds = PLACES[depth - 1]
        before = chances[made.parents[node]] if depth > 1 else 1.0
        chances.append(before * odds[tokens.index(made.tokens[node])])
    return [WORDS[token] for token in made.tokens], made.parents, chances


def likeliest_lines() -> Drawing:
    """The places' probabilities, and the tree of the likeliest lines with those of the lines."""
    words, parents, chances = tree()
    lines = "; ".join(f"{i}: {word} {chance:.2g}" for i, (word, chance) in enumerate(zip(words, chances, strict=True)))
    alt = (
        "For the first place a head gives three .6 and and .3, for the second four .7 and three .25. The nodes in the "
        f"order in which the heap gives them, with the probability of their line: {lines}. Parents: {parents}."
    )
    drawing = Drawing("likeliest-lines", 700, 200, "The five likeliest lines", alt)
    for i, (tokens, odds) in enumerate(PLACES):
        x = 20 + 120 * i
        drawing.text(x + 48, 24, f"place {i + 1}", 12, colour=GREY)
        for rank, (token, p) in enumerate(zip(tokens, odds, strict=True)):
            drawing.rect(x, 42 + 44 * rank, 96, 32, BLUE, 0.25, rx=4)
            drawing.text(x + 48, 58 + 44 * rank, f"{WORDS[token]}  {p:g}", 13)
    drawing.line([(250, 80), (300, 80)], GREY, arrow=True)
    spots = _spots(parents, 320, 40)
    drawing.rect(320, 80, 60, 32, GREY, 0.1, rx=4)
    drawing.text(350, 96, "two", 13)
    for node, (x, y) in enumerate(spots):
        before = (380, 96) if parents[node] < 0 else (spots[parents[node]][0] + 100, spots[parents[node]][1] + 16)
        drawing.line([before, (x, y + 16)], GREY)
    for node, (x, y) in enumerate(spots):
        drawing.rect(x, y, 100, 32, AMBER, 0.3, rx=4)
        drawing.text(x + 50, y + 16, f"{node}  {words[node]}", 13, bold=True)
        drawing.text(x + 50, y - 8, f"{chances[node]:.2g}", 11, colour=GREY)
    return drawing


def tree_mask() -> Drawing:
    """The share of a step: slots, positions and what each token sees."""
    words, parents, _ = tree()
    share = (-1, *(parent + 1 for parent in parents))
    depths, seen = ancestry(share)
    row = ["two", *words]
    positions = [FIRST + int(depth) for depth in depths]
    told = []
    for i, word in enumerate(row):
        slots = ", ".join(str(FIRST + j) for j in range(len(row)) if seen[i, j])
        told.append(f"{word} in slot {FIRST + i} at position {positions[i]} sees slots {slots}")
    alt = f"Six tokens of a step behind {FIRST} others that all of them see. {'; '.join(told)}."
    drawing = Drawing("tree-mask", 720, 270, "A token sees its ancestors", alt)
    left, top, size = 240, 64, 30
    drawing.text(60, 46, "token", 12, colour=GREY)
    drawing.text(128, 46, "slot", 12, colour=GREY)
    drawing.text(186, 46, "position", 12, colour=GREY)
    drawing.text(left + 70, 20, f"slots 0 to {FIRST - 1}", 12, colour=GREY)
    for j in range(len(row)):
        drawing.text(left + 150 + size * j + size / 2, 46, str(FIRST + j), 12, colour=GREY)
    for i, word in enumerate(row):
        y = top + size * i
        drawing.text(60, y + size / 2, word, 13, bold=True)
        drawing.text(128, y + size / 2, str(FIRST + i), 13)
        drawing.text(186, y + size / 2, str(positions[i]), 13)
        drawing.rect(left, y + 2, 140, size - 4, BLUE, 0.3, rx=3)
        for j in range(len(row)):
            hue, strength = (AMBER if i == j else GREEN, 0.45) if seen[i, j] else (GREY, 0.06)
            drawing.rect(left + 150 + size * j + 2, y + 2, size - 4, size - 4, hue, strength, rx=3)
    x = left + 150 + size * len(row) + 24
    for y, hue, name in ((90, BLUE, "the text"), (118, GREEN, "its ancestors"), (146, AMBER, "itself")):
        drawing.rect(x, y - 8, 16, 16, hue, 0.45)
        drawing.text(x + 24, y, name, 12, "start")
    return drawing


def head_inputs() -> Drawing:
    """Which features a head reads, and which token it guesses."""
    alt = (
        "The text one two three. The model's features of token two drew three. Medusa: head 1 reads the features of "
        "two and guesses the token behind three, head 2 the one after. EAGLE: an entry reads the features of two "
        "together with the token three, and guesses the token behind three; the next entry reads the first one's "
        "output together with that guess."
    )
    drawing = Drawing("head-inputs", 700, 250, "What heads read and guess", alt)
    xs = [30 + 112 * i for i in range(6)]
    row = ("one", "two", "three", "guess 1", "guess 2")
    for x, token in zip(xs[1:], row, strict=True):
        guess = token.startswith("guess")
        look = {"stroke_dasharray": "4 3"} if guess else {}
        drawing.rect(x, 108, 96, 32, AMBER if guess else BLUE, 0.3, rx=4, **look)
        drawing.text(x + 48, 124, token, 13, bold=not guess)
    two, three, first, second = (x + 48 for x in xs[2:])
    drawing.text(30, 50, "Medusa", 13, "start", bold=True)
    drawing.text(30, 200, "EAGLE", 13, "start", bold=True)
    drawing.rect(two - 48, 66, 96, 24, GREEN, 0.3, rx=4)
    drawing.text(two, 78, "features", 12)
    drawing.line([(two, 108), (two, 92)], GREY)
    for x, y, name in ((first, 50, "head 1"), (second, 28, "head 2")):
        drawing.line([(two, 64), (two, y), (x, y), (x, 106)], AMBER, 1.5, arrow=True)
        drawing.text((three + x) / 2, y - 9, name, 11, colour=GREY)
    drawing.line([(two, 140), (two, 158)], GREY)
    drawing.rect(two - 48, 160, 96, 24, GREEN, 0.3, rx=4)
    drawing.text(two, 172, "features", 12)
    for x, token, told in ((three, two, "entry"), (first, three, "entry")):
        drawing.rect(x - 44, 196, 88, 30, GREY, 0.15, rx=4)
        drawing.text(x, 211, told, 12)
        drawing.line([(x, 140), (x, 194)], GREY, arrow=True)
        if token == two:
            drawing.line([(two, 186), (two, 211), (x - 44, 211)], GREEN, 1.5, arrow=True)
        else:
            drawing.line([(token + 44, 211), (x - 44, 211)], GREEN, 1.5, arrow=True)
        drawing.line([(x + 36, 196), (x + 76, 142)], AMBER, 1.5, arrow=True)
    drawing.text((three + first) / 2, 234, "its output", 11, colour=GREY)
    return drawing


def _spots(parents: tuple[int, ...], left: float, top: float) -> list[tuple[float, float]]:
    """Where the nodes stand: a column for each depth, leaves one below the other."""
    depths, _ = ancestry(parents)
    rows = [0.0] * len(parents)
    used = 0
    order = sorted(range(len(parents)), key=lambda node: _path(parents, node))
    for node in order:
        if node not in parents:
            rows[node] = used
            used += 1
    for node in reversed(range(len(parents))):
        children = [child for child, parent in enumerate(parents) if parent == node]
        if children:
            rows[node] = sum(rows[child] for child in children) / len(children)
    return [(left + 120 + 130 * int(depth), top + 50 * row) for depth, row in zip(depths, rows, strict=True)]


def _path(parents: tuple[int, ...], node: int) -> list[int]:
    return [] if node < 0 else [*_path(parents, parents[node]), node]


def drawings() -> list[Drawing]:
    return [likeliest_lines(), tree_mask(), head_inputs()]
