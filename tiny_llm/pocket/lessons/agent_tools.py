"""Wishes for the agent's built-in tools, whose names and schemas are fixed in config/builtin_tools.toml."""

import ast
import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tiny_llm.config.prompts import builtin_tools, passage_format
from tiny_llm.pocket.lessons.builtin import (
    CLOCK_ASKS,
    MORE_CLOCK_ASKS,
    MORE_PYTHON_ASKS,
    MORE_READ_ASKS,
    MORE_SUM_ASKS,
    PYTHON_ASKS,
    READ_ASKS,
    SUM_ASKS,
    number_text,
    sum_of,
)
from tiny_llm.pocket.lessons.dialogue import JsonObject
from tiny_llm.pocket.lessons.passages import cited, facts
from tiny_llm.pocket.lessons.retrieval import passages_of, retrieved
from tiny_llm.pocket.lessons.words import Words, read_table

FOLDERS = ("src", "docs", "notes", "data", "tests", "config", "src/core", "docs/old")
TEXT_ENDINGS = ("txt", "md", "log", "csv")
SETTING_ENDINGS = ("toml", "ini", "cfg", "conf", "env")
ABSENT = passage_format().absent
NO_PASSAGES = builtin_tools().tools["search_documents"].empty
NO_MATCHES = builtin_tools().tools["search_files"].empty
EDITED = "I changed {path}."
WROTE = "I wrote {path}."


@dataclass(frozen=True)
class Wish:
    """A wish that one call serves: the call, its result, the answer to the user, and the value that a chain uses."""

    question: str
    tool: str
    arguments: JsonObject
    result: str
    answer: str
    value: str = ""


@cache
def table(name: str) -> dict[str, Any]:
    return read_table(f"tables/{name}.toml")


def asked(words: Words, kind: str, **fields: Any) -> str:
    """A phrasing of tables/builtin_asks.toml that this split may use."""
    row = table("builtin_asks")[kind]
    text: str = words.phrasing(row["asks"], row["more"])
    return text.format(**fields)


def file_path(words: Words, endings: tuple[str, ...] = TEXT_ENDINGS) -> str:
    """A path such as notes/brakor_plan.md."""
    stem = words.any_word()
    if words.chance(0.3):
        stem += words.choice("_-") + words.word()
    folder = words.choice(FOLDERS) if words.chance(0.5) else ""
    if folder and words.chance(0.3):
        folder = words.any_word()
    name = f"{stem}.{words.choice(endings)}"
    return f"{folder}/{name}" if folder else name


def setting(words: Words) -> str:
    """A line of a configuration file."""
    value = words.choice((str(words.number()), words.any_word(), words.choice(("true", "false"))))
    return f"{words.any_word()}{words.choice((' = ', '=', ': '))}{value}"


def code_line(words: Words) -> str:
    """A short line of Python."""
    name, other = words.names(2)
    name, other = name.lower(), other.lower()
    return words.choice(
        (
            f"def {name}({other}):",
            f"{name} = {words.number()}",
            f"return {name} + {other}",
            f"import {name}",
            f"{name}({other})",
            f"class {name.capitalize()}:",
            f'{name} = "{other}"',
        )
    )


def file_text(words: Words) -> str:
    """The text of a small file."""
    kind = words.choice(("sentence", "facts", "words", "lines", "settings"))
    if kind == "sentence":
        return words.sentence()
    if kind == "facts":
        return facts(words, 1).passages[0]
    if kind == "words":
        return str(words.value("text"))
    make = words.sentence if kind == "lines" else lambda: setting(words)
    return "\n".join(make() for _ in range(words.integer(2, 3)))


def quoted(words: Words, text: str) -> str:
    """The text as a user points to it: in quotes or, where it is short and plain, without."""
    if text.replace("_", "").isalnum() and words.chance(0.5):
        return text
    marks = [mark for mark in ('"', "'", "`") if mark not in text]
    mark = words.choice(marks)
    return f"{mark}{text}{mark}"


def sum_in_words(words: Words) -> tuple[str, str, str]:
    """(question, expression, result) of tables/sums.toml."""
    row = words.choice(table("sums")["sum"])
    fields: dict[str, Any] = {
        "a": words.number(),
        "b": max(1, words.number(3)),
        "c": words.integer(2, 9),
    }
    if words.chance(0.25) and "{c}" not in row["expression"]:
        fields["a"] = words.integer(1, 9999) / 100
    question = words.phrasing(row["asks"], row["more"]).format(**fields)
    expression = row["expression"].format(**fields)
    value = eval(expression)  # numbers and + - * / ** of our own table
    return question, expression, number_text(round(value, 4))


def calculator(words: Words) -> Wish:
    if words.chance(0.5):
        question, expression, result = sum_in_words(words)
    else:
        said, expression, result = sum_of(words)
        question = words.phrasing(SUM_ASKS, MORE_SUM_ASKS).format(said)
    return Wish(question, "calculator", {"expression": expression}, result, f"{expression} = {result}.", result)


def day(words: Words) -> datetime.date:
    return datetime.date.fromisoformat(words.date())


def full(date: datetime.date) -> str:
    """A date as the clock gives it: "Monday 2026-03-16"."""
    return f"{date:%A %Y-%m-%d}"


FROM_TODAY: Mapping[str, int] = {  # what a count in the question means in days
    "clock_days": 1,
    "clock_ago": -1,
    "clock_weeks": 7,
    "clock_tomorrow": 1,
    "clock_yesterday": -1,
}


def day_from_today(words: Words) -> Wish:
    """The date so many days from today; today is any day."""
    kind = words.choice(tuple(FROM_TODAY))
    count = words.integer(2, words.choice((40, 400)))
    if kind == "clock_weeks":
        count = words.integer(1, 8)
    if kind in ("clock_tomorrow", "clock_yesterday"):
        count = 1
    result = full(day(words))
    arguments = {"days": FROM_TODAY[kind] * count}
    return Wish(asked(words, kind, n=count), "clock", arguments, result, f"It is {result}.", result)


def day_from_date(words: Words) -> Wish:
    """A given date's weekday, or the date so many days after or before it."""
    kind = words.choice(("clock_weekday", "clock_after", "clock_before"))
    date, count = day(words), words.integer(2, words.choice((40, 400)))
    arguments: JsonObject = {"date": str(date)}
    question = asked(words, kind, d=date, n=count)
    if kind != "clock_weekday":
        arguments["days"] = count if kind == "clock_after" else -count
    result = full(date + datetime.timedelta(days=arguments.get("days", 0)))
    return Wish(question, "clock", arguments, result, f"It is {result}.", result)


def days_between(words: Words) -> Wish:
    """The days from today, or from a given date, to another date."""
    kind = words.choice(("clock_until", "clock_between"))
    date, count = day(words), words.integer(2, words.choice((40, 400)))
    until = date + datetime.timedelta(days=count)
    arguments = {"until": str(until)}
    question = asked(words, kind, d=until if kind == "clock_until" else date, u=until)
    if kind == "clock_between":
        arguments = {"date": str(date), "until": str(until)}
    result = f"{count} days"
    return Wish(question, "clock", arguments, result, f"It is {result}.", result)


def time_now(words: Words) -> Wish:
    result = f"{full(day(words))} {words.time()}"
    return Wish(words.phrasing(CLOCK_ASKS, MORE_CLOCK_ASKS), "clock", {}, result, f"It is {result}.", result)


def clock(words: Words) -> Wish:
    """The time, a date so many days away, a weekday, or a number of days."""
    make: tuple[Callable[[Words], Wish], ...] = (time_now, day_from_today, day_from_date, days_between)
    return words.choice(make)(words)


def read_wish(words: Words, path: str, text: str) -> Wish:
    """A wish to see a file."""
    question = words.phrasing(READ_ASKS, MORE_READ_ASKS).format(path)
    return Wish(question, "read_file", {"path": path}, text, f"{path} says: {text}", text)


def read_file(words: Words) -> Wish:
    """A whole file, some of its lines, or a question that a file answers."""
    path, text = file_path(words), file_text(words)
    kind = words.choice(("whole", "whole", "lines", "about"))
    if kind == "whole":
        return read_wish(words, path, text)
    if kind == "lines":
        first = words.integer(1, 200)
        last = first + words.integer(1, 30)
        arguments: JsonObject = {"path": path, "start_line": first, "end_line": last}
        question = asked(words, "read_lines", p=path, a=first, b=last)
        return Wish(question, "read_file", arguments, text, f"{path} says: {text}", text)
    document = facts(words, words.integer(1, 2))
    about, _, found = words.choice(document.answered)
    question = asked(words, "read_about", p=path, q=about)
    text = "\n".join(document.passages)
    return Wish(question, "read_file", {"path": path}, text, f"{found.rstrip('.')}.", found)


def places(found: list[tuple[str, int]]) -> str:
    """Where a text was found: "It is in a.md, line 3, and b.md, line 7."."""
    listed = [f"{path}, line {line}" for path, line in found]
    return f"It is in {', and '.join(listed)}."


def find_name(words: Words) -> Wish:
    """A file by its name."""
    path = file_path(words)
    name = path.rpartition("/")[2]
    return Wish(asked(words, "find_name", x=name), "search_files", {"pattern": name}, path, f"It is {path}.", path)


def search_files(words: Words) -> Wish:
    """A text in files, in the files of a folder, or a file by its name."""
    kind = words.choice(("find_text", "find_text", "find_in_folder", "find_name"))
    if kind == "find_name":
        return find_name(words)
    text = words.choice((words.any_word(), words.name(), code_line(words), f"{words.word()} {words.word()}", "TODO"))
    folder = words.choice(FOLDERS) if words.chance(0.5) else words.any_word()
    question = asked(words, kind, x=quoted(words, text), f=folder)
    arguments = {"pattern": text}
    if kind == "find_in_folder":
        arguments["path"] = folder
    if words.chance(0.12):
        return Wish(question, "search_files", arguments, NO_MATCHES, "Nothing was found.")
    found = []
    for _ in range(words.integer(1, 2)):
        path = file_path(words, ("md", "py", "txt"))
        if kind == "find_in_folder":
            path = f"{folder}/{path.rpartition('/')[2]}"
        found.append((path, words.integer(1, 300)))
    lines = [f"{path}:{line}: {text} {words.word()}" for path, line in found]
    return Wish(question, "search_files", arguments, "\n".join(lines), places(found), found[0][0])


def edited_text(words: Words, kind: str) -> str:
    if kind == "word":
        return words.any_word()
    if kind == "number":
        return str(words.number())
    if kind == "words":
        return str(words.value("text"))
    return setting(words) if kind == "setting" else code_line(words)


def replacement(words: Words) -> tuple[str, str]:
    """An old and a new text, not the same: words, a few words, lines of settings or lines of code."""
    kind = words.choice(("word", "word", "number", "words", "setting", "code"))
    old = new = edited_text(words, kind)
    while new == old:
        new = edited_text(words, kind)
    return old, new


def edit_call(words: Words, kind: str, path: str, old: str, new: str) -> Wish:
    question = asked(words, kind, p=path, o=quoted(words, old), n=quoted(words, new))
    arguments = {"path": path, "old_string": old, "new_string": new}
    result = builtin_tools().tools["edit_file"].result.format(path=path)
    return Wish(question, "edit_file", arguments, result, EDITED.format(path=path), new)


def edit_file(words: Words) -> Wish:
    """A text to replace or to delete."""
    path = file_path(words, (*TEXT_ENDINGS, *SETTING_ENDINGS, "py"))
    old, new = replacement(words)
    if words.chance(0.2):
        return edit_call(words, "edit_delete", path, old, "")
    return edit_call(words, "edit_replace", path, old, new)


def write_arguments(path: str, content: str) -> tuple[JsonObject, str]:
    """The arguments and the result of a call that writes a file."""
    return {"path": path, "content": content}, builtin_tools().tools["write_file"].result.format(path=path)


def write_file(words: Words) -> Wish:
    """A line or two or three lines to write."""
    path = file_path(words, (*TEXT_ENDINGS, *SETTING_ENDINGS, "py"))
    make: tuple[Callable[[], str], ...] = (
        lambda: str(words.value("text")),
        lambda: words.sentence(),
        lambda: setting(words),
        lambda: code_line(words),
        lambda: f"Call {words.person()} at {words.time()}",
    )
    made = words.choice(make)
    if words.chance(0.25):
        content = "\n".join(made() for _ in range(words.integer(2, 3)))
        question = asked(words, "write_lines", p=path, t=content)
    else:
        content = made()
        question = asked(words, "write_text", p=path, t=content).replace('""', '"')
    arguments, result = write_arguments(path, content)
    return Wish(question, "write_file", arguments, result, WROTE.format(path=path), content)


def python_task(words: Words) -> tuple[str, str, str]:
    """(what the user wants, Python code, what it prints)."""
    row = words.choice(table("python_tasks")["task"])
    numbers = [words.number(2) for _ in range(words.integer(3, 5))]
    fields: Mapping[str, Any] = {
        "l": ", ".join(map(str, numbers)),
        "w": words.any_word(),
        "v": words.any_word(),
        "s": f"{words.word()} {words.word()} {words.word()}",
        "a": words.number(),
        "b": words.integer(20, 99),
        "n": words.integer(2, 12),
    }
    expression = row["expression"].format(**fields)
    ast.parse(expression, mode="eval")
    printed = str(eval(expression))  # of our own table: what Python itself says
    return words.choice(row["says"]).format(**fields), f"print({expression})", printed


def run_python(words: Words) -> Wish:
    said, code, printed = python_task(words)
    if words.chance(0.25):
        question = asked(words, "run_code", c=code)
    else:
        question = words.phrasing(PYTHON_ASKS, MORE_PYTHON_ASKS).format(said)
    return Wish(question, "run_python", {"code": code}, printed, f"The output is {printed}.", printed)


def search_documents(words: Words) -> Wish:
    """A question on documents; now and then without passages, or with passages that do not hold the answer."""
    document = retrieved(words, facts(words, words.integer(1, 2)), words.integer(0, 1))
    lines = passage_format().lines(passages_of(words, document.passages))
    question, number, found = words.choice(document.answered)
    answer = cited(found, number)
    if words.chance(0.15) and document.unanswered:
        question, answer, found = words.choice(document.unanswered), ABSENT, ""
    elif words.chance(0.08):
        lines, answer, found = NO_PASSAGES, ABSENT, ""
    said = asked(words, "search_about", q=question)
    return Wish(said, "search_documents", {"query": question}, lines, answer, found)


WISHES: Mapping[str, Callable[[Words], Wish]] = {
    "calculator": calculator,
    "clock": clock,
    "read_file": read_file,
    "search_files": search_files,
    "edit_file": edit_file,
    "write_file": write_file,
    "run_python": run_python,
    "search_documents": search_documents,
}
