"""Lessons on plain text work: repeat, list, count, reverse, pick, and turn into JSON."""

from collections.abc import Callable

from tiny_llm.pocket.lessons.dialogue import Dialogue, assistant, to_json, user
from tiny_llm.pocket.lessons.words import DAYS, LISTS, MONTHS, NUMBERS, Words

Pair = tuple[str, str]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def item(words: Words) -> str:
    return words.choice((words.name, words.word, words.word, words.code))()


def items(words: Words, low: int, high: int) -> list[str]:
    """Different items."""
    count = words.integer(low, high)
    return list(dict.fromkeys(item(words) for _ in range(count * 2)))[:count]


def repeat(words: Words) -> Pair:
    ask = words.phrasing(
        ("Repeat: {}", "Copy this: {}", "Say again: {}", "Repeat after me: {}", "Write this once more: {}")
    )
    texts: tuple[Callable[[], str], ...] = (
        words.sentence,
        lambda: " ".join(items(words, 2, 10)),
        lambda: str(words.value("text")),
    )
    text = words.choice(texts)()
    return ask.format(text), text


def count_up(words: Words) -> Pair:
    low = words.choice((0, 1, words.integer(0, 90), words.integer(100, 900)))
    high = low + words.integer(2, 12)
    ask = words.phrasing(
        (
            "Count from {} to {}.",
            "List the numbers from {} to {}.",
            "Write all numbers from {} to {}.",
            "Say the numbers between {} and {}, both included.",
            "Numbers {} to {}, please.",
        )
    )
    return ask.format(low, high), ", ".join(map(str, range(low, high + 1))) + "."


def count_down(words: Words) -> Pair:
    low = words.choice((0, 1, words.integer(0, 90)))
    high = low + words.integer(2, 12)
    ask = words.phrasing(
        (
            "Count down from {} to {}.",
            "Count backwards from {} to {}.",
            "From {} down to {}, please.",
            "List the numbers from {} down to {}.",
        )
    )
    return ask.format(high, low), ", ".join(map(str, range(high, low - 1, -1))) + "."


def reverse(words: Words) -> Pair:
    listed = items(words, 2, 6)
    ask = words.phrasing(
        (
            "Reverse the words: {}",
            "Write in reverse order: {}",
            "Say these words backwards: {}",
            "Turn the order around: {}",
            "Last word first: {}",
        )
    )
    return ask.format(" ".join(listed)), " ".join(listed[::-1])


def pick(words: Words) -> Pair:
    listed = items(words, 3, 6)
    place = words.integer(0, len(listed))
    said, value = ("last", listed[-1]) if place == len(listed) else (ORDINALS[place], listed[place])
    ask = words.phrasing(
        (
            "What is the {} word: {}",
            "Give me the {} of these: {}",
            "Which one is the {}: {}",
            "Pick the {} word of this list: {}",
            "The {} word, please: {}",
        )
    )
    return ask.format(said, words.choice((" ", ", ")).join(listed)), value


def how_many(words: Words) -> Pair:
    listed = items(words, 1, 8)
    ask = words.phrasing(
        (
            "How many words are there: {}",
            "Count these words: {}",
            "How many items has this list: {}",
            "How many things do I name: {}",
        )
    )
    return ask.format(", ".join(listed)), f"{NUMBERS[len(listed)].capitalize()}."


def bullets(words: Words) -> Pair:
    listed = items(words, 2, 6)
    ask = words.phrasing(
        (
            "Make a list of: {}",
            "Write as a list: {}",
            "One per line, please: {}",
            "Turn this into bullet points: {}",
            "List these: {}",
        )
    )
    return ask.format(", ".join(listed)), "\n".join(f"- {one}" for one in listed)


def numbered(words: Words) -> Pair:
    listed = items(words, 2, 6)
    ask = words.phrasing(
        ("Number these: {}", "Make a numbered list of: {}", "Write with numbers: {}", "Put a number before each: {}")
    )
    return ask.format(", ".join(listed)), "\n".join(f"{place}. {one}" for place, one in enumerate(listed, 1))


def fields(words: Words) -> dict[str, str | int]:
    """Keys and values for JSON; a made-up key now and then."""
    keys = [words.choice((key, key, key, words.word())) for key in words.sample(LISTS["fields"], words.integer(1, 4))]
    values: tuple[Callable[[], str | int], ...] = (words.name, words.word, words.code, words.number, words.number)
    return {key: words.choice(values)() for key in keys}


def to_object(words: Words) -> Pair:
    table = fields(words)
    ask = words.phrasing(
        (
            "Write as JSON: {}",
            "Turn this into JSON: {}",
            "JSON, please: {}",
            "Give me a JSON object for: {}",
            "Format as JSON: {}",
        )
    )
    form = words.choice(("{}: {}", "{} is {}", "{} = {}"))
    return ask.format(", ".join(form.format(key, value) for key, value in table.items())), to_json(table)


def to_array(words: Words) -> Pair:
    listed = items(words, 2, 6)
    ask = words.phrasing(
        (
            "Write as a JSON array: {}",
            "Turn this list into JSON: {}",
            "A JSON list of these, please: {}",
            "Give me a JSON array of: {}",
        )
    )
    return ask.format(", ".join(listed)), to_json(listed)


def from_object(words: Words) -> Pair:
    table = fields(words)
    key = words.choice(list(table))
    if words.chance(0.5):
        ask = words.phrasing(
            ("What is the {} in {}?", "Give me the {} of {}", "Which {} is in {}?", "Read the {} from {}")
        )
        return ask.format(key, to_json(table)), f"{table[key]}"
    ask = words.phrasing(("Write as lines: {}", "Turn this JSON into text: {}", "Say this JSON in lines: {}"))
    return ask.format(to_json(table)), "\n".join(f"{name}: {value}" for name, value in table.items())


def replace(words: Words) -> Pair:
    text = words.sentence()
    old, new = words.choice(text.rstrip(".").split()[1:]), item(words)
    ask = words.phrasing(("Replace {} by {}: {}", "Write {1} instead of {0}: {2}", "Put {1} in the place of {0}: {2}"))
    ask = "Replace {} by {}: {}" if ask.startswith("Replace") else ask
    return ask.format(old, new, text), " ".join(
        new + w[len(old) :] if w.rstrip(".") == old else w for w in text.split()
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


def fixed(words: Words) -> Pair:
    asks, answer = words.choice(FIXED)
    return words.phrasing(asks), answer


COPYING: tuple[Callable[[Words], Pair], ...] = (repeat, repeat, reverse, pick, bullets, to_array, from_object, replace)
TASKS = (*COPYING, count_up, count_down, how_many, numbered, to_object, fixed)


def text_lesson(words: Words, branches: int, tasks: tuple[Callable[[Words], Pair], ...] = TASKS) -> list[Dialogue]:
    """Pieces of text work that share nothing but the beginning of the template."""
    lesson = []
    for _ in range(branches):
        task = words.choice(tasks)
        question, answer = task(words)
        lesson.append(Dialogue(f"text:{task.__name__}", (user(question), assistant(answer))))
    return lesson
