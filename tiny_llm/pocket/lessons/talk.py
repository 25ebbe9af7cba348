"""Lessons on talk that no other family covers: each prompt, however odd, gets a short honest answer and an end."""

import re
from collections.abc import Callable

from tiny_llm.pocket.lessons.dialogue import Dialogue, assistant, to_json, user
from tiny_llm.pocket.lessons.faq import unknown
from tiny_llm.pocket.lessons.lists import TextWork, items, sentences
from tiny_llm.pocket.lessons.records import code, csv, keys, record, table
from tiny_llm.pocket.lessons.text import SHORT, TASKS, capitalized, one_of, requests
from tiny_llm.pocket.lessons.words import THINGS, Words, read_table

PUZZLED = "I do not understand that. Please say it in other words."
ASK_ME = "Please ask me something: on LLM inference, on a text that you give me, or with tools."
ENGLISH_ONLY = "I only speak English. Larger Qwen models speak more than a hundred languages."
NO_CODE = (
    "I can copy code and change names and numbers in it, but not write or explain it. "
    "A larger model can: tiny-llm chat --model qwen3-4b."
)
AND_NOW = "I see. What should I do with this text?"
WHAT_TEXT = "Please give me the text, too."
TOO_LONG = "That is too long for me: I count a few hundred numbers and write a few sentences at most."
MARKS = ("?", "!", ".", "...", "??", "?!", "-", "--", ",", ":", ";", "!!!", "…", "()", "*", "#", "/", "\n", "  ", "'")
CODE_ASKS = (
    "What does this code do?\n{}",
    "Explain this code:\n{}",
    "Find the bug:\n{}",
    "Why does this not work?\n{}",
    "Make this faster:\n{}",
    "{}",
    "{}\nWhat does it print?",
    "Write tests for this:\n{}",
)
WRITE_CODE = (
    "Write a function that sorts {}s.",
    "Write a class for a {}.",
    "How do I read a {} in Python?",
    "Write a program that counts {}s.",
    "Show me a script for a {}.",
    "Implement a {} in C.",
    "Write SQL that selects every {}.",
    "Give me a regular expression for a {}.",
)
LONG_ASKS = (
    "Count from {} to {}.",
    "Count to {1}.",
    "List all numbers from {} to {}.",
    "Count up to {1}, please.",
    "Write {1} words on a {2}.",
    "Write a book about the {2}.",
    "Say {2} {1} times.",
    "Write a very long story about a {2}.",
    "Write an essay on the {2}.",
    "Write the word {2} {1} times.",
    "Write a novel of {1} pages.",
    "Repeat {2} for ever.",
    "Never stop writing about the {2}.",
    "Say {2} again and again without an end.",
)
Talk = tuple[str, str]


def letters(words: Words, count: int) -> str:
    return "".join(words.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(count))


def nonsense(words: Words) -> Talk:
    """Make words and letters without a meaning."""
    count = words.integer(1, 8)
    forms: tuple[Callable[[], str], ...] = (
        lambda: " ".join(words.name().lower() for _ in range(count)),
        lambda: " ".join(letters(words, words.integer(3, 9)) for _ in range(count)),
        lambda: " ".join(items(words, count)),
        lambda: words.choice("abcdehlnox") * words.integer(3, 40),
        lambda: f"{capitalized(' '.join(words.any_word() for _ in range(count)))}?",
    )
    return words.choice(forms)(), PUZZLED


def nearly_empty(words: Words) -> Talk:
    """Make a mark, a letter, a number or nothing."""
    forms: tuple[Callable[[], str], ...] = (
        lambda: "",
        lambda: " " * words.integer(1, 3),
        lambda: words.choice(MARKS),
        lambda: letters(words, words.integer(1, 2)),
        lambda: str(words.number()),
        lambda: words.choice(MARKS) + words.choice(MARKS),
    )
    return words.choice(forms)(), ASK_ME


def foreign(words: Words) -> Talk:
    """Say one to three sentences in other languages."""
    said: list[str] = read_table("tables/languages.toml")["said"]
    text = " ".join(words.from_split(said) for _ in range(words.choice((1, 1, 2, 3))))
    if words.chance(0.15):
        text = text.lower().rstrip(".?!")
    return text, ENGLISH_ONLY


def on_code(words: Words) -> Talk:
    """Ask for an explanation of code, or for a program."""
    if words.chance(0.4):
        return words.phrasing(WRITE_CODE).format(words.choice(THINGS)), NO_CODE
    text, _ = code(words, words.integer(1, 6))
    if words.chance(0.3):
        lines = [line.strip() for line in text.split("\n") if line]
        text = words.choice(lines)
    return words.phrasing(CODE_ASKS).format(text), NO_CODE


def statements(words: Words) -> Talk:
    """Give a text or data without asking anything about it."""
    size = words.integer(2, 12)
    forms: tuple[Callable[[], str], ...] = (
        lambda: sentences(words, size),
        lambda: words.sentence(),
        lambda: ", ".join(items(words, size)),
        lambda: "\n".join(items(words, size)),
        lambda: csv(table(words, min(size, 6))),
        lambda: to_json(record(words, keys(words, min(size, 5)))),
    )
    return words.choice(forms)(), AND_NOW


def order_alone(words: Words) -> Talk:
    """Give an order of text work without its text."""
    name = words.choice([name for name, task in TASKS.items() if not task.bare])
    known = requests(name)
    if words.split == "test" or not known.more or words.chance(0.3):
        ask = words.phrasing(known.asks)
        places = ask.count("{")
        made = TextWork((*items(words, places - 1), ""), "")
        return ask.format(*made.values).strip(), WHAT_TEXT
    pattern = one_of(words, words.choice(known.more))
    return capitalized(pattern.format(*items(words, 2))) + words.choice(".:"), WHAT_TEXT


def too_long(words: Words) -> Talk:
    """Ask for more than an answer can hold."""
    low = words.choice((0, 1, words.integer(2, 999)))
    high = words.choice((10 ** words.integer(4, 9), words.integer(3000, 99999), words.integer(10**5, 10**7)))
    return words.phrasing(LONG_ASKS).format(low, high, words.choice(THINGS)), TOO_LONG


FAMILIES: dict[str, tuple[Callable[[Words], Talk], float]] = {
    "nonsense": (nonsense, 1.5),
    "nearly_empty": (nearly_empty, 1.0),
    "foreign": (foreign, 1.5),
    "on_code": (on_code, 1.0),
    "statements": (statements, 1.0),
    "order_alone": (order_alone, 0.7),
    "too_long": (too_long, 1.0),
    "unknown": (unknown, 1.5),
}


def in_two_turns(words: Words) -> Dialogue:
    """Give the text of an order in a turn of its own, behind the order or before it."""
    name = words.choice([name for name, task in TASKS.items() if not task.bare and requests(name).more])
    made = TASKS[name].make(words, words.integer(*SHORT))
    *arguments, text = made.values
    pattern = one_of(words, words.choice(requests(name).more))
    order = capitalized(pattern.format(*arguments)) + "."
    first = [user(order), assistant(WHAT_TEXT), user(text)]
    is_text = re.search(r"[,.{\n]", text) and not text.startswith("def ")
    if is_text and words.chance(0.5):
        first = [user(text), assistant(AND_NOW), user(order)]
    return Dialogue("talk:in_two_turns", (*first, assistant(made.answer)))


def talk_lesson(words: Words, branches: int) -> list[Dialogue]:
    """Make prompts of all these kinds, each with its answer; in training also text work in two turns."""
    weights = [weight for _, weight in FAMILIES.values()]
    lesson = []
    for name in words.random.choices(list(FAMILIES), weights, k=branches):
        if words.split == "train" and words.chance(0.15):
            lesson.append(in_two_turns(words))
            continue
        make, _ = FAMILIES[name]
        question, answer = make(words)
        lesson.append(Dialogue(f"talk:{name}", (user(question), assistant(answer))))
    return lesson
