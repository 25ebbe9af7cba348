"""Chapters 3.7 and 3.8: a draft and what the model drew, guesses behind a repeated suffix, what rejection leaves."""

from tiny_llm.engine.suffix import SuffixAutomaton
from tiny_llm.views.svg import AMBER, BLUE, GREEN, GREY, RED, Drawing

KNOWN, DRAFT = ("one", "two", "three"), ("four", "five", "six", "nine")
DRAWN = ("four", "five", "seven", "eight", "ten")  # behind the text, and behind each guess
LETTERS = "abcdabceabcdab"


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


def drawings() -> list[Drawing]:
    return [verified(), suffix_guess()]
