"""Wishes for the agent's built-in tools, whose names and schemas are fixed in config/builtin_tools.toml."""

import ast
import datetime
from collections.abc import Callable, Mapping
from typing import Any

from tiny_llm.config.prompts import builtin_tools, passage_format
from tiny_llm.pocket.lessons.agent_files import edit_file, read_file, search_files, write_file
from tiny_llm.pocket.lessons.builtin import (
    CLOCK_ASKS,
    MORE_CLOCK_ASKS,
    MORE_PYTHON_ASKS,
    MORE_SUM_ASKS,
    PYTHON_ASKS,
    SUM_ASKS,
    number_text,
    sum_of,
)
from tiny_llm.pocket.lessons.dialogue import JsonObject
from tiny_llm.pocket.lessons.passages import cited, facts
from tiny_llm.pocket.lessons.retrieval import passages_of, retrieved
from tiny_llm.pocket.lessons.wishes import Wish, asked, table
from tiny_llm.pocket.lessons.words import Words

ABSENT = passage_format().absent
NO_PASSAGES = builtin_tools().tools["search_documents"].empty


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
