"""The built-in tools and the prompt format of retrieved passages: fixed texts that the pocket model is trained on."""

import re
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tiny_llm.config.fields import as_text, expect, require

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent
TOOLS_FILE = "builtin_tools.toml"
PASSAGES_FILE = "passages.toml"
TYPES = ("string", "integer", "number", "boolean")
TOOL_KEYS = ("name", "description", "required", "result", "empty", "failures", "properties")
FIELDS_OF = {  # the keys of passages.toml, and the fields that each text must have
    "system": set(),
    "prompt": {"passages", "question"},
    "passage": {"number", "text"},
    "headed": {"number", "heading", "text"},
    "heading": {"title", "source"},
    "answer": {"answer", "number"},
    "absent": set(),
}


@dataclass(frozen=True)
class BuiltinTool:
    """A built-in tool of the agent as the model sees it: its schema and the texts of its results."""

    name: str
    description: str
    properties: Mapping[str, Mapping[str, Any]]
    required: Sequence[str]
    result: str
    empty: str
    failures: Sequence[str]

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as a function of the OpenAI API."""
        properties = {name: dict(schema) for name, schema in self.properties.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.required)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class BuiltinTools:
    """All built-in tools by name, the system prompt of an agent and the text of a failed call's result."""

    system: str
    failed: str
    tools: Mapping[str, BuiltinTool]

    def failure(self, message: str) -> str:
        """Return the result of a call that fails: "Error: division by zero"."""
        return self.failed.format(message=message)


@dataclass(frozen=True)
class Passage:
    """A retrieved text; `title` and `source` are empty where they are unknown."""

    text: str
    title: str = ""
    source: str = ""


@dataclass(frozen=True)
class PassageFormat:
    """The prompt format of retrieved passages; the fields are the keys of passages.toml."""

    system: str
    prompt: str
    passage: str
    headed: str
    heading: str
    answer: str
    absent: str

    def line(self, number: int, passage: Passage) -> str:
        """Return one passage as it stands in the prompt: "[2] (Bridges, bridges.md) The bridge opened in 1907."."""
        text = " ".join(passage.text.split())
        heading = passage.title or passage.source
        if passage.title and passage.source:
            heading = self.heading.format(title=passage.title, source=passage.source)
        if not heading:
            return self.passage.format(number=number, text=text)
        return self.headed.format(number=number, heading=heading, text=text)

    def lines(self, passages: Sequence[Passage]) -> str:
        """Return the passages one a line, numbered from 1: also the result of the tool search_documents."""
        return "\n".join(self.line(number, passage) for number, passage in enumerate(passages, 1))

    def question(self, passages: Sequence[Passage], question: str) -> str:
        """Return the user's turn: the passages and, after them, the question."""
        return self.prompt.format(passages=self.lines(passages), question=question)

    def cited(self, answer: str, number: int) -> str:
        """Return the answer with its passage's number: "1907 [2]."."""
        return self.answer.format(answer=answer.rstrip("."), number=number)


@cache
def builtin_tools() -> BuiltinTools:
    """Return the built-in tools of builtin_tools.toml. Raises ValueError for a faulty file."""
    return parse_tools((FOLDER / TOOLS_FILE).read_text(encoding="utf-8"), TOOLS_FILE)


@cache
def passage_format() -> PassageFormat:
    """Return the prompt format of passages.toml. Raises ValueError for a faulty file."""
    return parse_passages((FOLDER / PASSAGES_FILE).read_text(encoding="utf-8"), PASSAGES_FILE)


def parse_tools(text: str, source: str) -> BuiltinTools:
    """Read the text of a file of tools. Raises ValueError that names `source` and the key of the first fault."""
    data = parsed(text, source)
    known_keys(data, ("system", "failed", "tool"), source)
    system = one_line(data["system"], f"{source}: system")
    failed = template(data["failed"], {"message"}, f"{source}: failed")
    expect(isinstance(data["tool"], list), f"{source}: tool", "a list of tables", data["tool"])
    tools: dict[str, BuiltinTool] = {}
    for number, row in enumerate(data["tool"], 1):
        where = f"{source}: tool {number}"
        tool = parse_tool(row, where)
        require(tool.name not in tools, f"{where}: name: {tool.name!r} is an earlier tool's name: choose another")
        tools[tool.name] = tool
    return BuiltinTools(system, failed, tools)


def parse_tool(row: Any, where: str) -> BuiltinTool:
    """Read one table of a tool. Raises ValueError that begins with `where`."""
    expect(isinstance(row, dict), where, "a table", row)
    known_keys(row, TOOL_KEYS, where)
    name = one_line(row["name"], f"{where}: name")
    expect(re.fullmatch("[a-z][a-z_]*", name) is not None, f"{where}: name", "small letters and _", name)
    properties = schemas(row["properties"], f"{where}: properties")
    required = row["required"]
    expect(isinstance(required, list), f"{where}: required", "a list", required)
    for key in required:
        expect(key in properties, f"{where}: required", f"names out of {', '.join(properties)}", key)
    failures = row["failures"]
    expect(isinstance(failures, list), f"{where}: failures", "a list", failures)
    return BuiltinTool(
        name,
        one_line(row["description"], f"{where}: description"),
        properties,
        tuple(required),
        as_text(row["result"], f"{where}: result"),
        as_text(row["empty"], f"{where}: empty"),
        tuple(one_line(text, f"{where}: failures") for text in failures),
    )


def schemas(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Return a table of JSON schemas. Raises ValueError that begins with `where`."""
    expect(isinstance(value, dict), where, "a table", value)
    for key, schema in value.items():
        place = f"{where}.{key}"
        expect(isinstance(schema, dict), place, "a JSON schema", schema)
        kind = schema.get("type")
        expect(kind in TYPES, f"{place}.type", f"one of {', '.join(TYPES)}", kind)
    return dict(value)


def parse_passages(text: str, source: str) -> PassageFormat:
    """Read the text of a file of the format. Raises ValueError that names `source` and the key of the first fault."""
    data = parsed(text, source)
    known_keys(data, tuple(FIELDS_OF), source)
    for key, fields in FIELDS_OF.items():
        template(data[key], fields, f"{source}: {key}")
    return PassageFormat(**data)


def parsed(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{source}: expected TOML, found something else: {error}") from error


def known_keys(data: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    """Raise ValueError unless `data` has exactly these keys."""
    for key in keys:
        require(key in data, f"{where}: {key}: missing: add it")
    for key in data:
        require(key in keys, f"{where}: {key}: unknown key: choose among {', '.join(keys)}")


def one_line(value: Any, where: str) -> str:
    """Return a text of one line that is not empty. Raises ValueError that begins with `where`."""
    text = as_text(value, where)
    expect(text.strip() != "" and "\n" not in text, where, "one line of text", text)
    return text


def template(value: Any, fields: set[str], where: str) -> str:
    """Return a text with exactly these fields in braces. Raises ValueError that begins with `where`."""
    text = as_text(value, where)
    try:
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        raise ValueError(f"{where}: expected a text with fields in braces, found {text!r}: {error}") from error
    expected = ", ".join(sorted(fields)) or "none"
    require(found == fields, f"{where}: expected the fields {expected}, found {', '.join(sorted(found)) or 'none'}")
    return text
