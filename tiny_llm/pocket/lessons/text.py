"""Lessons on plain text work: how it is asked for, and the families of lists.py and records.py by name.

Each answer copies its input with a change: a number before each line, another word, a field as JSON. So a draft that
looks the text up in the prompt can propose most of the answer. A quarter of the inputs are long, so that the model
learns to end an answer of any length.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

from tiny_llm.pocket.lessons import lists, records
from tiny_llm.pocket.lessons.dialogue import Dialogue, assistant, user
from tiny_llm.pocket.lessons.lists import TextWork
from tiny_llm.pocket.lessons.words import DAYS, MONTHS, Words, read_table

LONG_SHARE = 0.15  # of the pieces, unless a lesson says otherwise
SHORT = (2, 6)  # items, lines or sentences of a short input
ALTERNATIVES = re.compile(r"\(([^()]*)\)")
ORDERS = (  # training only: how an order is dressed up, and the mark behind it
    ("{}", "."),
    ("{}", "."),
    ("{}", "."),
    ("please {}", "."),
    ("{}, please", "."),
    ("can you {}", "?"),
    ("could you {}", "?"),
    ("I want you to {}", "."),
    ("your task: {}", "."),
    ("now {}", "."),
)
FIXED: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("List the days of the week.", "What are the days of the week?", "Name the seven days.", "Say all weekdays."),
        ", ".join(DAYS) + ".",
    ),
    (
        ("List the months of the year.", "What are the months?", "Name the twelve months.", "Say all months."),
        ", ".join(MONTHS) + ".",
    ),
    (
        ("Say the alphabet.", "List all letters.", "Write the alphabet.", "What letters are there?"),
        " ".join("abcdefghijklmnopqrstuvwxyz"),
    ),
)


@dataclass(frozen=True)
class TextTask:
    """A family of text work: `make` writes an input of a size and its answer; the longest has `longest` items."""

    make: Callable[[Words, int], TextWork]
    weight: float = 1.0
    longest: int = 36
    bare: bool = False  # the request has no text to work on


@dataclass(frozen=True)
class Requests:
    """The wordings of a family's requests; those in `more` and `questions` are for training only."""

    asks: Sequence[str]
    more: Sequence[str] = ()
    questions: Sequence[str] = ()


TASKS: Mapping[str, TextTask] = {
    "repeat": TextTask(lists.repeat, 1.5, 40),
    "count_up": TextTask(lists.count_up, 1.5, 90, bare=True),
    "count_down": TextTask(lists.count_down, 1.5, 90, bare=True),
    "count_by": TextTask(lists.count_by, 0.5, 30, bare=True),
    "reverse": TextTask(lists.reverse, longest=10),
    "reverse_lines": TextTask(lists.reverse_lines, longest=10),
    "pick": TextTask(lists.pick, longest=6),
    "how_many": TextTask(lists.how_many, 0.7, 12),
    "bullets": TextTask(lists.bullets),
    "numbered": TextTask(lists.numbered),
    "number_lines": TextTask(lists.number_lines),
    "take": TextTask(lists.take, 0.7),
    "leave_out": TextTask(lists.leave_out, 0.7),
    "append": TextTask(lists.append, 0.7),
    "join": TextTask(lists.join),
    "split": TextTask(lists.split),
    "upper": TextTask(lists.upper, 0.7, 16),
    "lower": TextTask(lists.lower, 0.7, 16),
    "sort_words": TextTask(lists.sort_words, 0.5, 6),
    "sort_numbers": TextTask(lists.sort_numbers, 0.5, 6),
    "to_array": TextTask(records.to_array),
    "to_object": TextTask(records.to_object, 1.5, 20),
    "from_object": TextTask(records.from_object, 1.0, 12),
    "object_lines": TextTask(records.object_lines, 1.0, 20),
    "to_csv": TextTask(records.to_csv, 1.0, 16),
    "from_csv": TextTask(records.from_csv, 1.0, 14),
    "column": TextTask(records.column, 1.0, 20),
    "fill": TextTask(records.fill, 1.0, 12),
    "replace": TextTask(lists.replace, 1.5, 36),
    "repeat_code": TextTask(records.repeat_code, 0.7, 12),
    "rename": TextTask(records.rename, 1.0, 12),
    "change_number": TextTask(records.change_number, 0.7, 12),
    "fixed": TextTask(lists.nothing, 0.3, bare=True),
}
COPYING = ("repeat", "reverse", "pick", "bullets", "to_array", "from_object", "object_lines", "replace", "join", "take")


@cache
def requests(name: str) -> Requests:
    """Read a family's requests from tables/text.toml."""
    return Requests(**read_table("tables/text.toml")[name])


def one_of(words: Words, pattern: str) -> str:
    """Choose one of the alternatives in each pair of round brackets of a pattern."""
    return ALTERNATIVES.sub(lambda found: words.choice(found[1].split("|")), pattern)


def all_of(pattern: str) -> list[str]:
    """Return every text that `one_of` can make of a pattern."""
    parts = ALTERNATIVES.split(pattern)
    options = [part.split("|") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*options)]


def capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def order(words: Words, pattern: str, values: Sequence[str], bare: bool) -> str:
    """Write an order of the training's own, with its text behind or before it."""
    form, mark = words.choice(ORDERS)
    arguments = values if bare else values[:-1]
    said = form.format(one_of(words, pattern).format(*arguments))
    if bare:
        return capitalized(said) + mark
    text = values[-1]
    if words.chance(0.25):
        return f"{text}\n\n{capitalized(said)}{mark}"
    if words.chance(0.15):
        return f"{capitalized(said)}{mark}\n\n{text}"
    behind = mark if mark == "?" else ":"
    gap = "\n" if "\n" in text or words.chance(0.25) else " "
    return f"{capitalized(said)}{behind}{gap}{text}"


def request(words: Words, name: str, values: Sequence[str]) -> str:
    """Ask for a family's work in the wording of this split."""
    known = requests(name)
    if words.split == "test" or words.chance(0.25):
        return words.phrasing(known.asks).format(*values)
    pattern = words.choice([*known.more, *known.questions])
    if pattern in known.questions:
        text = one_of(words, pattern).format(*values)
    else:
        text = order(words, pattern, values, TASKS[name].bare)
    if words.chance(0.1):
        return words.choice(("Hello. ", "Please help me. ", "One more thing: ", "A task: ")) + text
    return text


def piece(words: Words, name: str, long: bool) -> tuple[str, str]:
    """Write one request of a family and its answer."""
    task = TASKS[name]
    if name == "fixed":
        asks, answer = words.choice(FIXED)
        return words.phrasing(asks), answer
    low, high = SHORT
    if long:
        low, high = min(high + 1, task.longest), task.longest
    made = task.make(words, words.integer(low, high))
    return request(words, name, made.values), made.answer


def text_lesson(
    words: Words, branches: int, names: Sequence[str] = tuple(TASKS), long: float = LONG_SHARE
) -> list[Dialogue]:
    """Make pieces of text work that share nothing but the beginning of the template; a share of them is `long`."""
    weights = [TASKS[name].weight for name in names]
    lesson = []
    for name in words.random.choices(names, weights, k=branches):
        question, answer = piece(words, name, words.chance(long))
        lesson.append(Dialogue(f"text:{name}", (user(question), assistant(answer))))
    return lesson
