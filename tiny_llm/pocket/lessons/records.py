"""Text work on fields, tables, templates and code: each function makes an input of a size, and the answer to it."""

import re
from collections.abc import Callable
from keyword import iskeyword

from tiny_llm.pocket.lessons.dialogue import to_json
from tiny_llm.pocket.lessons.lists import TextWork, items, listed
from tiny_llm.pocket.lessons.words import LISTS, THINGS, Words

Field = str | int
FORMS = ("{}: {}", "{} is {}", "{} = {}")
KNOWN_TO_PYTHON = ("print", "range", "append")
GAPS = ("{{{}}}", "<{}>", "[{}]")
TEMPLATES = (
    "Dear {0}, your {1} will arrive on {2}.",
    "Hello {0}! The {1} is at {2}.",
    "{0} pays {1} for the {2}.",
    "The {0} of {1} is {2}.",
    "Name: {0}\nItem: {1}\nPlace: {2}",
    "We met {0} in {1}, and {2} was there, too.",
    "Order {0}: send {1} to {2}.",
    "Thank you, {0}. I have read {1} and will answer {2}.",
    "{0} and {1} go to {2} today.",
    "Please bring {0} and {1} to {2}.",
    "From {0} to {1}: {2}",
    "In {0} there are {1}, but no {2}.",
)


def keys(words: Words, count: int) -> list[str]:
    """Return different names of fields, now and then made-up ones."""
    found: dict[str, None] = {}
    while len(found) < count:
        known = count <= 8 and words.chance(0.75)
        found[words.choice(LISTS["fields"]) if known else words.word()] = None
    return list(found)


def value(words: Words) -> Field:
    values: tuple[Callable[[], Field], ...] = (words.name, words.word, words.code, words.number, words.number)
    return words.choice(values)()


def record(words: Words, names: list[str]) -> dict[str, Field]:
    return {name: value(words) for name in names}


def to_array(words: Words, size: int) -> TextWork:
    found = items(words, size)
    return TextWork((listed(words, found),), to_json(found))


def to_object(words: Words, size: int) -> TextWork:
    made = record(words, keys(words, max(1, size - 1)))
    form = words.choice(FORMS)
    fields = [form.format(key, value) for key, value in made.items()]
    return TextWork((listed(words, fields),), to_json(made))


def from_object(words: Words, size: int) -> TextWork:
    made = record(words, keys(words, max(1, size - 1)))
    key = words.choice(list(made))
    return TextWork((key, to_json(made)), str(made[key]))


def object_lines(words: Words, size: int) -> TextWork:
    made = record(words, keys(words, max(1, size - 1)))
    return TextWork((to_json(made),), "\n".join(f"{key}: {value}" for key, value in made.items()))


def table(words: Words, size: int) -> list[dict[str, Field]]:
    """Make rows with the same two to four fields."""
    names = keys(words, words.integer(2, 4 if size < 8 else 3))
    return [record(words, names) for _ in range(size)]


def csv(rows: list[dict[str, Field]]) -> str:
    head = ",".join(rows[0])
    body = [",".join(str(value) for value in row.values()) for row in rows]
    return "\n".join([head, *body])


def to_csv(words: Words, size: int) -> TextWork:
    rows = table(words, max(1, size - 1))
    if words.chance(0.5):
        said = "\n".join(to_json(row) for row in rows)
    else:
        said = "\n".join(", ".join(f"{key}: {value}" for key, value in row.items()) for row in rows)
    return TextWork((said,), csv(rows))


def from_csv(words: Words, size: int) -> TextWork:
    rows = table(words, max(1, size - 1))
    return TextWork((csv(rows),), "\n".join(to_json(row) for row in rows))


def column(words: Words, size: int) -> TextWork:
    rows = table(words, size)
    name = words.choice(list(rows[0]))
    return TextWork((name, csv(rows)), "\n".join(str(row[name]) for row in rows))


def fill(words: Words, size: int) -> TextWork:
    """Make a text with gaps in brackets, and the values that go into them."""
    texts, values = [], list[str]()
    result = []
    names = keys(words, 3 if size < 7 else 3 * (size // 3))
    for start in range(0, len(names), 3):
        template = words.from_split(TEMPLATES)
        chosen = names[start : start + 3]
        made = [str(value(words)) for _ in chosen]
        gap = words.choice(GAPS)
        gaps = [gap.format(name) for name in chosen]
        texts.append(template.format(*gaps))
        result.append(template.format(*made))
        values += [f"{name} = {said}" for name, said in zip(chosen, made, strict=True)]
    return TextWork(("\n".join(texts), ", ".join(values)), "\n".join(result))


def statement(words: Words, names: list[str]) -> str:
    """Write a line of a function's body."""
    first, second = words.choice(names), words.choice(names)
    number = words.integer(1, 99)
    forms: tuple[Callable[[], str], ...] = (
        lambda: f"{first} = {second} {words.choice('+-*')} {number}",
        lambda: f"{first} = {words.choice(names)} {words.choice('+-*')} {second}",
        lambda: f"if {first} > {number}:\n        {second} = {words.integer(0, 9)}",
        lambda: f"for i in range({number}):\n        {first} += i",
        lambda: f"print({first}, {second})",
        lambda: f"{first}.append({second})",
        lambda: f"print({number}, {first})",
    )
    return words.choice(forms)()


def code(words: Words, size: int) -> tuple[str, list[str]]:
    """Make Python functions that make no sense, a few lines each, and the names in them."""
    texts, used = [], list[str]()
    for _ in range(max(1, size // 3)):
        name, *names = names_of_code(words, words.integer(3, 4), used)
        body = [statement(words, names) for _ in range(words.integer(1, 3))]
        end = f"return {words.choice(names)}"
        head = f"def {name}({', '.join(names)}):"
        texts.append("\n    ".join([head, *body, end]))
        used += [name, *names]
    return "\n\n".join(texts), used


def names_of_code(words: Words, count: int, used: list[str]) -> list[str]:
    """Return names for code that begin otherwise than each other and than those in use."""
    beginnings = {name[:2] for name in used}
    found: list[str] = []
    while len(found) < count:
        name = words.any_word() if words.chance(0.5) else words.choice(THINGS)
        if name[:2] not in beginnings and name not in KNOWN_TO_PYTHON and not iskeyword(name):
            beginnings.add(name[:2])
            found.append(name)
    return found


def repeat_code(words: Words, size: int) -> TextWork:
    text, _ = code(words, size)
    return TextWork((text,), text)


def rename(words: Words, size: int) -> TextWork:
    text, used = code(words, size)
    old = words.choice(used)
    (new,) = names_of_code(words, 1, used)
    return TextWork((old, new, text), re.sub(rf"\b{old}\b", new, text))


def change_number(words: Words, size: int) -> TextWork:
    text, _ = code(words, size)
    while not re.search(r"\d", text):
        text, _ = code(words, size)
    old = words.choice(re.findall(r"\d+", text))
    new = str(words.integer(1, 99))
    return TextWork((old, new, text), re.sub(rf"\b{old}\b", new, text))
