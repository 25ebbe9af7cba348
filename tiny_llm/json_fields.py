"""Typed access to JSON that came from elsewhere, with errors that say where to look."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


class JsonFields:
    """Typed access to a parsed JSON object; errors name the file, the key, what was expected and what was found."""

    def __init__(self, data: Mapping[str, Any], source: str):
        require(isinstance(data, Mapping), f"{source}: expected a JSON object, found {type(data).__name__}")
        self.data, self.source = data, source

    def _fail(self, key: str, expected: str) -> ValueError:
        found = repr(self.data[key]) if key in self.data else "nothing"
        return ValueError(f"{self.source}: {key}: expected {expected}, found {found}")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        value = self.data.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self._fail(key, f"an integer of at least {low}")
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0) -> float:
        """A finite number above `low`."""
        value = self.data.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= low:
            raise self._fail(key, f"a finite number above {low:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self._fail(key, "true or false")
        return value

    def choice(self, key: str, options: Sequence[Any], default: Any = None) -> Any:
        value = self.data.get(key, default)
        if isinstance(value, list | dict) or value not in options:
            raise self._fail(key, "one of " + ", ".join(map(str, options)))
        return value

    def table(self, key: str) -> "JsonFields | None":
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self._fail(key, "an object")
        return JsonFields(value, f"{self.source}: {key}")
