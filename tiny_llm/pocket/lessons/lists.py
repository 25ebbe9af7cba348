"""Text work on words, lines and numbers: each function makes an input of a size, and the answer to it."""

import re
from collections.abc import Callable
from typing import NamedTuple

from tiny_llm.pocket.lessons.words import NUMBERS, QUALITIES, THINGS, Words

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
SEPARATORS = {  # what stands between the parts, by its name in a request
    "commas": ", ",
    "semicolons": "; ",
    "slashes": " / ",
    "dashes": " - ",
    "bars": " | ",
    "plus signs": " + ",
}


class TextWork(NamedTuple):
    """What a request names, the text to work on last, and the answer."""

    values: tuple[str, ...]
    answer: str


def nothing(words: Words, size: int) -> TextWork:
    """Return an empty piece, for requests that name all there is."""
    return TextWork((), "")


def item(words: Words) -> str:
    return words.choice((words.name, words.word, words.word, words.code))()


def items(words: Words, count: int) -> list[str]:
    """Return so many different items, of which none is a part of another."""
    found: list[str] = []
    while len(found) < count:
        new = item(words)
        if not any(new in old or old in new for old in found):
            found.append(new)
    return found


def lines(words: Words, count: int) -> list[str]:
    """Return so many different lines: sentences, single items or a few words each."""
    if count > 12 or words.chance(0.4):
        return items(words, count)
    source: Callable[[], str] = words.choice((words.sentence, lambda: str(words.value("text"))))
    found: dict[str, None] = {}
    while len(found) < count:
        found[source()] = None
    return list(found)


def listed(words: Words, parts: list[str]) -> str:
    """Write parts as they stand in a request: with commas, in training now and then on lines."""
    if words.split == "train" and words.chance(0.25):
        return "\n".join(parts)
    return ", ".join(parts)


def sentences(words: Words, count: int) -> str:
    return " ".join(words.sentence() for _ in range(count))


def repeat(words: Words, size: int) -> TextWork:
    forms: tuple[Callable[[], str], ...] = (
        lambda: sentences(words, max(1, size // 2)),
        lambda: " ".join(items(words, size)),
        lambda: ", ".join(items(words, size)),
        lambda: "\n".join(lines(words, size)),
        lambda: str(words.value("text")),
    )
    text = words.choice(forms)()
    return TextWork((text,), text)


def first_number(words: Words) -> int:
    return words.choice((0, 1, words.integer(0, 20), words.integer(0, 90), words.integer(91, 900)))


def count_up(words: Words, size: int) -> TextWork:
    low = first_number(words)
    high = low + words.integer(size, size * 2 if size < 10 else size)
    return TextWork((str(low), str(high)), ", ".join(map(str, range(low, high + 1))) + ".")


def count_down(words: Words, size: int) -> TextWork:
    low = first_number(words)
    high = low + words.integer(size, size * 2 if size < 10 else size)
    return TextWork((str(high), str(low)), ", ".join(map(str, range(high, low - 1, -1))) + ".")


def count_by(words: Words, size: int) -> TextWork:
    step = words.choice((2, 2, 3, 5, 10, 10, 20, 100))
    low = step * words.choice((0, 0, 1, words.integer(0, 10)))
    high = low + step * (size + 1)
    return TextWork((str(low), str(high), str(step)), ", ".join(map(str, range(low, high + 1, step))) + ".")


def reverse(words: Words, size: int) -> TextWork:
    found = items(words, size)
    between = words.choice((" ", " ", ", "))
    return TextWork((between.join(found),), between.join(reversed(found)))


def reverse_lines(words: Words, size: int) -> TextWork:
    found = lines(words, size)
    return TextWork(("\n".join(found),), "\n".join(reversed(found)))


def pick(words: Words, size: int) -> TextWork:
    found = items(words, max(3, size))
    place = words.integer(0, len(found))
    said, value = "last", found[-1]
    if place < len(found):
        said, value = ORDINALS[place], found[place]
    between = words.choice((" ", ", "))
    return TextWork((said, between.join(found)), value)


def how_many(words: Words, size: int) -> TextWork:
    count = size if size > 3 else words.integer(1, 3)
    return TextWork((", ".join(items(words, count)),), f"{NUMBERS[count].capitalize()}.")


def bullets(words: Words, size: int) -> TextWork:
    found = items(words, size)
    return TextWork((listed(words, found),), "\n".join(f"- {one}" for one in found))


def with_numbers(parts: list[str]) -> str:
    return "\n".join(f"{place}. {part}" for place, part in enumerate(parts, 1))


def numbered(words: Words, size: int) -> TextWork:
    found = items(words, size)
    return TextWork((listed(words, found),), with_numbers(found))


def number_lines(words: Words, size: int) -> TextWork:
    found = lines(words, size)
    return TextWork(("\n".join(found),), with_numbers(found))


def take(words: Words, size: int) -> TextWork:
    found = items(words, size + 1)
    count = words.integer(2, min(size, 12))
    return TextWork((NUMBERS[count], ", ".join(found)), ", ".join(found[:count]))


def leave_out(words: Words, size: int) -> TextWork:
    found = items(words, size + 1)
    gone = words.choice(found)
    return TextWork((gone, ", ".join(found)), ", ".join(one for one in found if one != gone))


def append(words: Words, size: int) -> TextWork:
    *found, new = items(words, size + 1)
    return TextWork((new, ", ".join(found)), ", ".join([*found, new]))


def join(words: Words, size: int) -> TextWork:
    found = items(words, size)
    name = words.choice(list(SEPARATORS))
    return TextWork((name, "\n".join(found)), SEPARATORS[name].join(found))


def split(words: Words, size: int) -> TextWork:
    found = items(words, size)
    name = words.choice(list(SEPARATORS))
    return TextWork((name, SEPARATORS[name].join(found)), "\n".join(found))


def upper(words: Words, size: int) -> TextWork:
    text = " ".join(items(words, max(1, size - 1)))
    return TextWork((text,), text.upper())


def lower(words: Words, size: int) -> TextWork:
    text = " ".join(items(words, max(1, size - 1)))
    return TextWork((text if words.chance(0.4) else text.upper(),), text.lower())


def sort_words(words: Words, size: int) -> TextWork:
    """Make words with different first letters: these alone decide the order."""
    found: dict[str, str] = {}
    while len(found) < min(size, 6):
        word = words.any_word() if words.chance(0.7) else words.choice([*THINGS, *QUALITIES])
        found.setdefault(word[0], word)
    chosen = words.sample(list(found.values()), len(found))
    return TextWork((", ".join(chosen),), ", ".join(sorted(chosen)))


def sort_numbers(words: Words, size: int) -> TextWork:
    found = words.sample(range(1, 10 ** words.choice((1, 2, 2, 3))), min(size, 6))
    return TextWork((", ".join(map(str, found)),), ", ".join(map(str, sorted(found))))


def replace(words: Words, size: int) -> TextWork:
    """Replace a word everywhere, often one that comes more than once."""
    text = sentences(words, max(1, size // 2))
    known = re.findall(r"\b[a-z]{3,}\b", text)
    if words.chance(0.6):
        twice = [word for word in known if known.count(word) > 1 and word != "the"]
        known = twice or known
    old = words.choice(known)
    new = item(words)
    answer = re.sub(rf"\b{old}\b", new, text)
    return TextWork((old, new, text), answer)
