"""Limit the time and the text that one rendering of a chat template may use.

A template is a program that comes with a model's files. While it runs it spends an `Allowance`: `template_sandbox.py`
checks it before each operation that could take long or make a large value.
"""

import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

SECONDS = 0.8  # of this thread's processor time
SECONDS_PER_CHARACTER = 1e-6  # additional seconds for each character of the messages and tools
CHARACTERS = 20_000_000  # characters that the template may make in all, each of up to 4 bytes
PER_CHARACTER = 40  # additional characters for each character of the messages and tools
OBJECT = 16  # characters that take the memory of one Python object
BITS = 10_000  # bits of an integer at most
DEEPEST = 150  # levels of lists and objects at most


class LimitError(ValueError):
    """The template exceeded a limit. `what`: what it did. `limit`: the limit, with its unit."""

    def __init__(self, what: str, limit: str):
        super().__init__(f"{what} (limit {limit})")
        self.what = what
        self.limit = limit


class Allowance:
    """The time and text that one rendering may still use. `size`: characters of its messages and tools."""

    def __init__(self, size: int):
        self.characters = CHARACTERS + PER_CHARACTER * size
        self.seconds = SECONDS + SECONDS_PER_CHARACTER * size
        self.left = self.characters
        self.end = time.thread_time() + self.seconds

    def spend(self, characters: int) -> None:
        """Use up so many characters. Raises LimitError if too few are left or the time is over."""
        self.left -= characters + 1
        if self.left < 0:
            raise self._too_much()
        if time.thread_time() > self.end:
            raise LimitError("it ran too long", f"{self.seconds:.1f} seconds of processor time")

    def spend_on(self, value: Any, factor: int = 1) -> None:
        """Use up the characters of a value as text; a list counts each time that it appears in the value."""
        self.spend(factor * self.size_of(value))

    def size_of(self, value: Any) -> int:
        """Return about how many characters the value has as text. Raises LimitError if fewer are left."""
        if isinstance(value, str):
            return len(value)
        total = 0
        count = 0
        waiting = [(value, 0)]
        while waiting:
            value, depth = waiting.pop()
            total += len(value) if isinstance(value, str) else OBJECT
            if total > self.left:
                raise self._too_much()
            count += 1
            if count % 1024 == 0:
                self.spend(0)
            if depth > DEEPEST:
                raise LimitError("it nested lists too deeply", f"{DEEPEST} levels")
            if isinstance(value, Collection) and not isinstance(value, str):
                waiting += [(each, depth + 1) for each in self._inside(value)]
            elif isinstance(value, Namespace):
                waiting.append((object.__getattribute__(value, "_Namespace__attrs"), depth + 1))
        return total

    def _inside(self, value: Collection[Any]) -> list[Any]:
        if OBJECT * len(value) > self.left:
            raise self._too_much()
        if isinstance(value, Mapping):
            return [each for pair in value.items() for each in pair]
        return list(value)

    def _too_much(self) -> LimitError:
        return LimitError("it made too much text or too long lists", f"{self.characters} characters")


def cost(value: Any) -> int:
    """Return the memory of a value without the objects in it, in characters."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Collection):
        return OBJECT * len(value)
    return OBJECT


CURRENT: ContextVar[Allowance] = ContextVar("allowance")
