"""Conversations with the built-in tools in which every call succeeds: single calls, and chains of two and three."""

from collections.abc import Sequence
from dataclasses import dataclass

from tiny_llm.pocket.lessons.agent_files import (
    NO_MATCHES,
    TEXT_ENDINGS,
    WROTE,
    edit_call,
    file_path,
    file_text,
    quoted,
    read_wish,
    replacement,
    write_arguments,
)
from tiny_llm.pocket.lessons.agent_tools import WISHES, python_task
from tiny_llm.pocket.lessons.dialogue import JsonObject, assistant, call, tool_result, user
from tiny_llm.pocket.lessons.tools import Tool
from tiny_llm.pocket.lessons.wishes import Wish, asked
from tiny_llm.pocket.lessons.words import Words

LOOKUPS = ("calculator", "clock", "run_python", "search_documents")  # their result may be written to a file
ToolTalk = list[JsonObject]


@dataclass(frozen=True)
class Offer:
    """The tools of a lesson: names of built-in ones, and others beside them."""

    builtin: tuple[str, ...]
    others: tuple[Tool, ...]

    def wish(self, words: Words) -> Wish:
        """A wish for any of the tools."""
        if self.others and words.chance(0.15):
            tool = words.choice(self.others)
            request = tool.request(words)
            return Wish(request.question, tool.name, request.arguments, request.result, request.answer)
        return WISHES[words.choice(self.builtin)](words)


def steps(*wishes: Wish) -> ToolTalk:
    """The calls of the wishes with their results."""
    talk: ToolTalk = []
    for wish in wishes:
        talk += [call(wish.tool, wish.arguments), tool_result(wish.result)]
    return talk


def chain(question: str, answer: str, *wishes: Wish) -> ToolTalk:
    return [user(question), *steps(*wishes), assistant(answer)]


def single(words: Words, offer: Offer) -> ToolTalk:
    wish = offer.wish(words)
    return chain(wish.question, wish.answer, wish)


def both(words: Words, offer: Offer) -> ToolTalk:
    """Two wishes at once."""
    first, second = offer.wish(words), offer.wish(words)
    question = asked(words, "both", first=first.question, second=second.question)
    return chain(question, f"{first.answer} {second.answer}", first, second)


def follow_up(words: Words, offer: Offer) -> ToolTalk:
    """A wish after one or two others are served."""
    talk = single(words, offer)
    for _ in range(words.choice((1, 1, 2))):
        wish = offer.wish(words)
        talk += chain(asked(words, "open_again", first=wish.question), wish.answer, wish)
    return talk


def written(words: Words, first: Wish) -> tuple[str, Wish]:
    """The question of a wish whose value is written to a file, and the wish to write it."""
    path = file_path(words)
    arguments, result = write_arguments(path, first.value)
    second = Wish("", "write_file", arguments, result, WROTE.format(path=path))
    return asked(words, "and_write", first=first.question, p=path), second


def with_value(words: Words, names: Sequence[str]) -> Wish:
    """A wish for one of the tools that has a value to go on with."""
    while True:
        wish = WISHES[words.choice(names)](words)
        if wish.value and "\n" not in wish.value:
            return wish


def look_and_write(words: Words, offer: Offer) -> ToolTalk:
    first = with_value(words, [name for name in offer.builtin if name in LOOKUPS])
    question, second = written(words, first)
    return chain(question, f"{first.answer} {second.answer}", first, second)


def sum_wish(expression: str) -> Wish:
    """The call that evaluates an expression of small numbers."""
    value = str(eval(expression))  # numbers, + and * of our own
    return Wish("", "calculator", {"expression": expression}, value, f"{expression} = {value}.", value)


def numbers_of_file(words: Words) -> tuple[Wish, Wish]:
    """A file of numbers, and their sum."""
    numbers = [words.integer(1, 999) for _ in range(words.integer(2, 4))]
    if words.chance(0.5):
        lines = [f"{words.word()}: {number}" for number in numbers]
        text = "\n".join(lines)
    else:
        text = words.choice((", ", "\n", " ")).join(map(str, numbers))
    path = file_path(words)
    question = asked(words, "add_numbers", p=path)
    first = Wish(question, "read_file", {"path": path}, text, "")
    return first, sum_wish(" + ".join(map(str, numbers)))


def read_and_add(words: Words, offer: Offer) -> ToolTalk:
    first, second = numbers_of_file(words)
    return chain(first.question, second.answer, first, second)


def read_add_write(words: Words, offer: Offer) -> ToolTalk:
    first, second = numbers_of_file(words)
    asking = Wish(first.question, "", {}, "", "", second.value)
    question, third = written(words, asking)
    return chain(question, f"{second.answer} {third.answer}", first, second, third)


def found_number(words: Words) -> tuple[str, Wish, Wish]:
    """A question on a number of the documents times another; the search and the sum."""
    while True:
        first = WISHES["search_documents"](words)
        if first.value.isdigit():
            break
    factor = words.integer(2, 20)
    question = asked(words, "and_multiply", first=first.question, n=factor)
    return question, first, sum_wish(f"{first.value} * {factor}")


def search_and_multiply(words: Words, offer: Offer) -> ToolTalk:
    question, first, second = found_number(words)
    return chain(question, second.answer, first, second)


def search_multiply_write(words: Words, offer: Offer) -> ToolTalk:
    asking, first, second = found_number(words)
    question, third = written(words, Wish(asking, "", {}, "", "", second.value))
    return chain(question, f"{second.answer} {third.answer}", first, second, third)


def not_found(question: str, pattern: str) -> ToolTalk:
    """A search without a result, which ends the chain."""
    return chain(question, "Nothing was found.", Wish("", "search_files", {"pattern": pattern}, NO_MATCHES, ""))


def find_and_read(words: Words, offer: Offer) -> ToolTalk:
    path = file_path(words)
    name = path.rpartition("/")[2]
    question = asked(words, "find_and_read", x=name)
    if words.chance(0.12):
        return not_found(question, name)
    second = read_wish(words, path, file_text(words))
    return chain(question, second.answer, Wish("", "search_files", {"pattern": name}, path, ""), second)


def found_and_edited(words: Words) -> tuple[str, Wish, Wish]:
    """A text to find and to change: the question, the search and the edit, whose value is the new text."""
    path = file_path(words, (*TEXT_ENDINGS, "py", "toml"))
    old, new = replacement(words)
    question = asked(words, "find_and_edit", o=quoted(words, old), n=quoted(words, new))
    place = f"{path}:{words.integer(1, 300)}: {old}"
    search = Wish("", "search_files", {"pattern": old}, place, "")
    return question, search, edit_call(words, "edit_replace", path, old, new)


def find_and_edit(words: Words, offer: Offer) -> ToolTalk:
    question, first, second = found_and_edited(words)
    if words.chance(0.12):
        return not_found(question, str(first.arguments["pattern"]))
    return chain(question, second.answer, first, second)


def find_edit_read(words: Words, offer: Offer) -> ToolTalk:
    wish, first, second = found_and_edited(words)
    question = asked(words, "and_read_again", first=wish)
    third = read_wish(words, str(second.arguments["path"]), second.value)
    return chain(question, f"{second.answer} {third.answer}", first, second, third)


def change_and_read(words: Words, offer: Offer) -> ToolTalk:
    """A file that is edited or written, and read again."""
    first = WISHES[words.choice([name for name in offer.builtin if name in ("edit_file", "write_file")])](words)
    text = str(first.arguments.get("new_string", first.value)) or words.sentence()
    third = read_wish(words, str(first.arguments["path"]), text)
    question = asked(words, "and_read_again", first=first.question)
    return chain(question, f"{first.answer} {third.answer}", first, third)


def read_and_run(words: Words, offer: Offer) -> ToolTalk:
    _, code, printed = python_task(words)
    path = file_path(words, ("py",))
    first = Wish(asked(words, "read_and_run", p=path), "read_file", {"path": path}, code, "")
    second = Wish("", "run_python", {"code": code}, printed, f"The output is {printed}.")
    return chain(first.question, second.answer, first, second)
