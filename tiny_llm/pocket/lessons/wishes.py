"""What a user wants of a built-in tool, and the phrasings of tables/builtin_asks.toml."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from tiny_llm.pocket.lessons.dialogue import JsonObject
from tiny_llm.pocket.lessons.words import Words, read_table


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
