"""Typed access to JSON that came from elsewhere, with errors that say where to look."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


LONGEST = 100  # characters of a value in an error message

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = LONGEST
SHORT.maxlevel = 3


def shown(value: Any) -> str:
    """Return `value` as Python writes it, in at most 100 characters: its whole text is not built, it could be huge."""
    try:
        return SHORT.repr(value)[:LONGEST]
    except Exception:  # an int of more digits than Python prints, or a faulty __repr__
        return f"a {type(value).__name__} that can't be printed"


def expect(ok: bool, where: str, expected: str, found: Any) -> None:
    """Raise ValueError naming the place, what was expected and what was found, unless `ok`."""
    if not ok:
        raise ValueError(f"{where}: expected {expected}, found {shown(found)}")


def as_text(text: Any, where: str) -> str:
    """Return `text`. Raises ValueError naming `where` unless it is a text that can be written as UTF-8."""
    expect(isinstance(text, str), where, "a text", text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = ord(text[error.start])
        raise ValueError(
            f"{where}: expected text, found half a character (the surrogate U+{surrogate:04X}) at "
            f"character {error.start}; read the text as UTF-8"
        ) from None
    return str(text)


def as_json(value: Any) -> str:
    """Return `value` as a JSON file spells it, in at most 100 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # not from a file, or of more digits or levels than Python writes
        return shown(value)
    text = text.encode("utf-8", "backslashreplace").decode()  # half a surrogate pair could not be printed
    return text[:LONGEST]


def is_integer(value: Any) -> bool:
    """Whether `value` is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether `value` is an int or float that a float can hold, neither infinite nor NaN."""
    if is_integer(value):
        return bool(abs(value) < 2**1023)
    return isinstance(value, float) and math.isfinite(value)


def parse_object(data: bytes, source: str) -> "JsonFields":
    """Parse a JSON object. Raises ValueError naming `source` for anything else, a repeated key included."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} appears twice")
        return table

    try:
        parsed = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: expected JSON, found something else: {error}") from error
    return JsonFields(parsed, source)


class JsonFields:
    """Typed access to a parsed JSON object; errors name the file, the key, what was expected and what was found."""

    def __init__(self, data: Mapping[str, Any], source: str):
        require(isinstance(data, Mapping), f"{source}: expected a JSON object, found {type(data).__name__}")
        self.data, self.source = data, source

    def _fail(self, key: str, expected: str) -> ValueError:
        found = as_json(self.data[key]) if key in self.data else "nothing"
        return ValueError(f"{self.source}: {key}: expected {expected}, found {found}")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 2**31 - 1) -> int:
        value = self.data.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self._fail(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, inclusive: bool = False) -> float:
        """A finite number above `low`, or from `low` on where that is `inclusive`."""
        value = self.data.get(key)
        value = default if value is None else value
        expected = f"a finite number {'of at least' if inclusive else 'above'} {low:g}"
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < 1e300:
            raise self._fail(key, expected)
        if value == low and not inclusive:
            raise self._fail(key, expected)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._fail(key, "true or false")
        return value

    def choice(self, key: str, options: Sequence[Any], default: Any = None) -> Any:
        value = self.data.get(key, default)
        if not any(value == option and type(value) is type(option) for option in options):
            names = [option if isinstance(option, str) else as_json(option) for option in options]
            raise self._fail(key, f"one of {', '.join(names)}")
        return value

    def table(self, key: str) -> "JsonFields | None":
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._fail(key, "an object")
        return JsonFields(value, f"{self.source}: {key}")
