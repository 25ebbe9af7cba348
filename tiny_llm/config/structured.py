"""The form that an answer must have."""

import json
from dataclasses import dataclass
from typing import Literal

from tiny_llm.config.fields import require

KINDS = ("json_schema", "regex", "lark")


@dataclass(frozen=True)
class Structured:
    """The form that an answer must have: `text` is a JSON schema, a regular expression or a Lark grammar."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"structured: expected one of {', '.join(KINDS)}, found {self.kind!r}")
        require(isinstance(self.text, str) and bool(self.text), f"structured: expected a text, found {self.text!r}")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"structured: expected a text, found half of a surrogate pair: {error}") from error
        if self.kind == "json_schema":
            try:
                schema = json.loads(self.text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"structured: expected a JSON schema, found no JSON: {error}") from error
            ok = isinstance(schema, dict) or schema is True
            require(
                ok, f"structured: expected a JSON schema that something fits, an object or true, found {schema!r:.80}"
            )
