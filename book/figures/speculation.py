"""Chapters 3.7 and 3.8: a draft and what the model drew, guesses behind a repeated suffix, what rejection leaves."""

from itertools import accumulate, pairwise

from tiny_llm.engine.suffix import SuffixAutomaton
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

KNOWN, DRAFT = ("one", "two", "three"), ("four", "five", "six", "nine")
DRAWN = ("four", "five", "seven", "eight", "ten")  # behind the text, and behind each guess
LETTERS = "abcdabceabcdab"
MODEL, DRAFTER = (0.5, 0.3, 0.2), (0.2, 0.5, 0.3)  # p and q of three tokens


def verified() -> Drawing:
    """A row for each place behind which the model draws; the first wrong guess ends what counts."""
    right = next(i for i, (guess, drawn) in enumerate(zip(DRAFT, DRAWN, strict=False)) if guess != drawn)
    alt = (
        f"The text ends with {' '.join(KNOWN)}, and {' '.join(DRAFT)} are guesses. Behind the text the model drew "
        f"{DRAWN[0]}, behind the guesses {', '.join(DRAWN[1:])}. The first {right} guesses are right. The answer goes "
        f"on with {' '.join(DRAWN[: right + 1])}; what was drawn behind {DRAFT[right]} and later is thrown away."
    )
    drawing = Drawing("draft-verified", 700, 210, "One step verifies four guesses", alt)
    drawing.text(20, 52, "computed", 12, "start", GREY)
    drawing.text(20, 142, "drawn behind it", 12, "start", GREY)
    left, width = 130, 92
    for i, token in enumerate(KNOWN[-1:] + DRAFT):
        x = left + i * (width + 16)
        counts = i <= right
        hue = BLUE if not i else GREEN if i <= right else RED
        drawing.rect(x, 34, width, 36, hue, 0.35 if counts else 0.12, rx=4)
        drawing.text(x + width / 2, 52, token, 14, bold=counts)
        drawing.line([(x + width / 2, 72), (x + width / 2, 120)], GREY, arrow=True)
        bonus = i == right
        border = {"stroke": AMBER, "stroke_width": 2.5} if bonus else {}
        hue = AMBER if bonus else GREEN if counts else GREY
        drawing.rect(x, 124, width, 36, hue, 0.35 if counts else 0.08, rx=4, **border)
        drawing.text(x + width / 2, 142, DRAWN[i], 14, colour="currentColor" if counts else GREY, bold=counts)
        if i < right:
            drawing.line([(x + width - 8, 122), (x + width + 28, 72)], GREEN, 1.5, arrow=True)
        note = "the bonus" if bonus else "right" if counts else "thrown away"
        drawing.text(x + width / 2, 176, note, 11, colour=GREY)
    x = left + (right + 1) * (width + 16)
    drawing.text(x + width / 2, 20, "wrong", 11, colour=RED)
    return drawing


def suffix_guess() -> Drawing:
    """A text, its longest suffix that occurs earlier, and what followed it; a short suffix would guess otherwise."""
    known = SuffixAutomaton()
    known.extend(map(ord, LETTERS))
    match = known.repeated
    guess = "".join(map(chr, known.guess(match, 3, 0.0, is_end=True).tokens))
    size = match.length
    suffix = LETTERS[-size:]
    alt = (
        f"The text {' '.join(LETTERS)}. Its last {size} tokens, {' '.join(suffix)}, also stand at its beginning, and "
        f"{' '.join(guess)} followed there: these are the guesses."
    )
    drawing = Drawing("suffix-guess", 700, 150, "What followed the same words before", alt)
    begin = LETTERS.index(suffix)
    for i, letter in enumerate(LETTERS + guess):
        x = 24 + 38 * i
        guessed = i >= len(LETTERS)
        known_end = len(LETTERS) - size <= i < len(LETTERS)
        earlier = begin <= i < begin + size
        source = begin + size <= i < begin + size + len(guess)
        hue = AMBER if guessed or source else BLUE
        strong = guessed or known_end or earlier or source
        look = {"stroke_dasharray": "4 3"} if guessed else {}
        drawing.rect(x, 50, 34, 36, hue if strong else GREY, 0.35 if strong else 0.08, rx=3, **look)
        drawing.text(x + 17, 68, letter, 15, bold=strong)
    for start, end, label, y in (
        (begin, begin + size, "the same, earlier", 100),
        (len(LETTERS) - size, len(LETTERS), "the longest repeated suffix", 100),
        (len(LETTERS), len(LETTERS) + len(guess), "guesses", 100),
    ):
        left, right = 24 + 38 * start, 24 + 38 * end - 4
        drawing.line([(left, y), (right, y)], BLUE if label != "guesses" else AMBER, 3)
        drawing.text((left + right) / 2, y + 16, label, 12, colour=GREY)
    source = 24 + 38 * (begin + size) + 19 * len(guess)
    target = 24 + 38 * len(LETTERS) + 19 * len(guess)
    drawing.line([(source, 48), (source, 26), (target, 26), (target, 48)], AMBER, 1.5, arrow=True)
    drawing.text((source + target) / 2, 14, "what followed", 12, colour=GREY)
    return drawing


def same_number() -> Drawing:
    """The unit interval cut by p and by q: where both have the same token, one random number draws it from both."""
    cuts = sorted({*accumulate(MODEL), *accumulate(DRAFTER), 0.0})
    equal = [(a, b) for a, b in pairwise(cuts) if _drawn(MODEL, (a + b) / 2) == _drawn(DRAFTER, (a + b) / 2)]
    both = sum(b - a for a, b in equal)
    alt = (
        f"The numbers from 0 to 1, divided among the tokens a, b and c by p = {_row(MODEL)} and by "
        f"q = {_row(DRAFTER)}. Both divisions have the same token in {both:.1f} of it: from "
        f"{', '.join(f'{a:.1f} to {b:.1f}' for a, b in equal)}."
    )
    drawing = Drawing("same-number", 700, 190, "One random number, two distributions", alt)
    left, width = 90, 580
    for y, row, name in ((30, MODEL, "model, p"), (100, DRAFTER, "drafter, q")):
        drawing.text(left - 10, y + 17, name, 12, "end")
        begin = 0.0
        for token, part, hue in zip("abc", row, (BLUE, AMBER, GREEN), strict=True):
            drawing.rect(left + width * begin, y, width * part, 34, hue, 0.4, rx=2)
            drawing.text(left + width * (begin + part / 2), y + 17, f"{token}  {part:g}", 13)
            begin += part
    for a, b in equal:
        drawing.rect(left + width * a, 66, width * (b - a), 32, GREEN, 0.15, stroke="none")
        drawing.line([(left + width * a, 146), (left + width * b, 146)], GREEN, 4)
    drawing.text(left, 168, f"the same token: {both:.1f} of all numbers", 12, "start", GREY)
    x = left + width * 0.56
    drawing.line([(x, 22), (x, 142)], RED, 1.5, dash="4 3")
    drawing.text(x, 14, "u = 0.56: b and b", 11, colour=RED)
    return drawing


def overlap() -> Drawing:
    """Bars of p and q: what both have is accepted, what q has more is rejected, and comes back where p has more."""
    accepted = sum(map(min, MODEL, DRAFTER))
    alt = (
        f"p = {_row(MODEL)} and q = {_row(DRAFTER)} for the tokens a, b and c. What both have, {accepted:.1f} in all, "
        f"is accepted. q has 0.2 more of b and 0.1 more of c, which is rejected. p has 0.3 more of a: the rejected "
        f"{1 - accepted:.1f} is drawn there."
    )
    drawing = Drawing("rejection", 700, 230, "What a rejection leaves", alt)
    base, scale, bar = 190, 280, 54
    for i, (token, p, q) in enumerate(zip("abc", MODEL, DRAFTER, strict=True)):
        x = 60 + 150 * i
        for place, value, hue, name in ((0, p, AMBER, "p"), (1, q, RED, "q")):
            at = x + place * (bar + 4)
            low = min(p, q)
            drawing.rect(at, base - scale * low, bar, scale * low, GREEN, 0.4)
            if value > low:
                drawing.rect(at, base - scale * value, bar, scale * (value - low), hue, 0.4)
                drawing.text(at + bar / 2, base - scale * (value + low) / 2, f"{value - low:.1f}", 12, bold=True)
            drawing.text(at + bar / 2, base - scale * low / 2, f"{low:g}", 12)
            drawing.text(at + bar / 2, base - scale * value - 10, f"{name}({token}) = {value:g}", 11, colour=GREY)
        drawing.text(x + bar + 2, base + 16, token, 14, bold=True)
    for y, hue, words in (
        (60, GREEN, "accepted: min(p, q), 0.7 in all"),
        (92, RED, "rejected: q - p, 0.3 in all"),
        (124, AMBER, "drawn instead: p - q, 0.3 in all"),
    ):
        drawing.rect(500, y - 9, 16, 16, hue, 0.4)
        drawing.text(522, y, words, 11, "start")
    return drawing


def _drawn(row: tuple[float, ...], uniform: float) -> int:
    """The token that a number in [0, 1) draws."""
    return sum(uniform >= border for border in accumulate(row))


def _row(row: tuple[float, ...]) -> str:
    return ", ".join(f"{part:g}" for part in row)


def drawings() -> list[Drawing]:
    return [verified(), suffix_guess(), same_number(), overlap()]
