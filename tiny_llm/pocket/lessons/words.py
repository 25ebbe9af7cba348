"""Seeded words, names and numbers for the pocket model's lessons, with a part of them held out for its evaluation.

What is held out is decided by a hash, never by chance, so training and evaluation can't meet by accident.
"""

import random
import re
import sys
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
Split = Literal["train", "test"]
HELD_OUT_SHARE = 8  # one in so many


def held_out(text: str) -> bool:
    """Whether this text may only occur in the evaluation."""
    return zlib.crc32(text.encode()) % HELD_OUT_SHARE == 0


def read_table(path: str) -> dict[str, Any]:
    """A TOML file beside this module."""
    return tomllib.loads((Path(__file__).parent / path).read_text(encoding="utf-8"))


LISTS: dict[str, list[str]] = {name: text.split() for name, text in read_table("tables/words.toml").items()}
ONSETS, VOWELS = LISTS["onsets"], LISTS["vowels"]
CODAS = ["", "", *LISTS["codas"]]
FIRST_NAMES, CITIES, COLORS = LISTS["first_names"], LISTS["cities"], LISTS["colors"]
DAYS, MONTHS, NUMBERS = LISTS["days"], LISTS["months"], LISTS["numbers"]
THINGS, QUALITIES, VERBS = LISTS["things"], LISTS["qualities"], LISTS["verbs"]
ADVERBS = ["slowly", "today", "again", "at night", "in the rain", "every morning", "near the hill", "without a word"]
OPENERS = (
    "Please tell me: ",
    "A question: ",
    "Hello. ",
    "Quick question: ",
    "I would like to know: ",
    "One more thing: ",
    "Please help me. ",
    "Say, ",
)


@cache
def plain_words() -> tuple[str, ...]:
    """The words of three letters and more of the tables and the FAQ, without those that are held out."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*/*.toml")))
    found = {word for text in texts for word in re.findall(r"\b[a-z]{3,}\b", text)}
    return tuple(sorted(word for word in found if not held_out(word)))


class Words:
    """A seeded source of everything that is made up; `split` decides which names and phrasings may come."""

    def __init__(self, seed: int | str, split: Split = "train") -> None:
        self.random = random.Random(f"{split}/{seed}")
        self.split = split

    def choice(self, options: Sequence[T]) -> T:
        return self.random.choice(options)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def integer(self, low: int, high: int) -> int:
        """Uniform, both ends included."""
        return self.random.randint(low, high)

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        return self.random.sample(options, min(count, len(options)))

    def phrasings(self, options: Sequence[T], more: Sequence[T] = ()) -> list[T]:
        """The ways to say it that this split may use: of three or more, the hash keeps one for the evaluation.

        `more` are further ones for training, which leave the choice of the kept one alone.
        """
        if len(options) < 3:
            return list(options)
        kept = zlib.crc32("|".join(map(str, options)).encode()) % len(options)
        found = [option for index, option in enumerate(options) if (index == kept) == (self.split == "test")]
        return found if self.split == "test" else [*found, *more]

    def seen(self, options: Sequence[T], more: Sequence[T] = ()) -> list[T]:
        """The ways to say it that training may use, and all of `options` in the evaluation."""
        return list(options) if self.split == "test" else self.phrasings(options, more)

    def opened(self, question: str) -> str:
        """The question, now and then with a few words before it."""
        return self.choice(OPENERS) + question if self.chance(0.15) else question

    def phrasing(self, options: Sequence[T], more: Sequence[T] = ()) -> T:
        """One of the ways to say it that this split may use."""
        return self.choice(self.phrasings(options, more))

    def from_split(self, options: Sequence[str]) -> str:
        """One of the words that belong to this split."""
        return self.choice([o for o in options if held_out(o) == (self.split == "test")] or options)

    def or_unknown(self, word: str, share: float) -> str:
        """The word; in training, this often, another in its place, that can only be matched, not remembered."""
        return self.any_word() if self.split == "train" and self.chance(share) else word

    def any_word(self) -> str:
        """A word in small letters: made of syllables or, in training only, of two plain words, or a plain one."""
        if self.split == "test" or self.chance(0.4):
            return self.name().lower()
        while True:
            first, second = self.sample(plain_words(), 2)
            word = first
            if self.chance(0.6):
                word = first[: self.integer(2, len(first) - 1)] + second[self.integer(1, len(second) - 2) :]
            if not held_out(word):
                return word

    def blurred(self, template: str) -> str:
        """The template; in training, now and then, one or two of its words are others: what is in braces tells all."""
        if self.split == "test" or not self.chance(0.15):
            return template
        pieces = template.split(" ")
        free = [place for place, piece in enumerate(pieces) if "{" not in piece]
        for place in self.sample(free, self.integer(1, 2)):
            mark = pieces[place][len(pieces[place].rstrip(".,:?!")) :]
            word = self.word() if mark or self.chance(0.7) else ""
            pieces[place] = word + mark
        text = " ".join(piece for piece in pieces if piece)
        return text[0].upper() + text[1:]

    def name(self) -> str:
        """A made-up proper name, like Brakor."""
        while True:
            count = self.choice((1, 2, 2, 2, 3))
            syllables = (self.choice(ONSETS) + self.choice(VOWELS) + self.choice(CODAS) for _ in range(count))
            name = "".join(syllables).capitalize()
            if 3 < len(name) < 11 and held_out(name) == (self.split == "test"):
                return name

    def names(self, count: int) -> list[str]:
        """So many different names."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.name()] = None
        return list(found)

    def place(self) -> str:
        return self.choice(CITIES) if self.split == "train" and self.chance(0.25) else self.name()

    def person(self) -> str:
        return f"{self.choice(FIRST_NAMES)} {self.name()}" if self.chance(0.7) else self.name()

    def number(self, max_digits: int = 4) -> int:
        """Every length is as likely as the other, so short numbers are not rare."""
        digits = self.integer(1, max_digits)
        return self.integer(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)

    def time(self) -> str:
        return f"{self.integer(0, 23):02d}:{self.integer(0, 59):02d}"

    def date(self) -> str:
        return f"20{self.integer(10, 39)}-{self.integer(1, 12):02d}-{self.integer(1, 28):02d}"

    def code(self) -> str:
        """Letters and digits, like KX417 or B-2093."""
        letters = "".join(self.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(self.integer(1, 3)))
        return f"{letters}{self.choice(('', '-'))}{self.integer(10, 9999)}"

    def word(self) -> str:
        """A plain word or a made-up one, in small letters."""
        return self.choice((self.any_word(), self.choice(THINGS), self.choice(QUALITIES)))

    def sentence(self) -> str:
        """Grammatical nonsense that fills long documents."""
        first, second = self.sample(THINGS, 2)
        return (
            f"The {self.choice(QUALITIES)} {first} {self.choice(VERBS)} the {self.choice(QUALITIES)} {second} "
            f"{self.choice(ADVERBS)}."
        )

    def value(self, kind: str) -> Any:
        """A value by its kind: "int:1:40", "of:red,blue", "text", or a method's name such as "place" or "date"."""
        name, _, rest = kind.partition(":")
        if name == "int":
            low, high = rest.split(":")
            return self.integer(int(low), int(high))
        if name == "decimal":
            return self.integer(1, 999) / 10
        if name == "of":
            return self.choice(rest.split(","))
        if name == "money":
            return f"{self.number(3)} {self.choice(('euros', 'dollars'))}"
        if name == "text":
            return " ".join(self.word() for _ in range(self.integer(2, 5)))
        if name == "file":
            return f"{self.word()}.{self.choice(('txt', 'md', 'csv', 'log', 'json'))}"
        if name == "email":
            return f"{self.name().lower()}@{self.word()}.{self.choice(('com', 'org', 'net'))}"
        if name == "color":
            return self.choice(COLORS)
        if name == "day":
            return self.choice(DAYS)
        if name == "thing":
            return self.choice(THINGS)
        if name in ("name", "place", "person", "number", "time", "date", "code", "word", "sentence"):
            return getattr(self, name)()
        raise ValueError(f"unknown kind of value {kind!r}: see Words.value for the kinds there are")
