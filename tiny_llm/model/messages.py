"""Check chat messages and tools, mark their texts as plain text, and copy them into the form that templates expect."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tiny_llm.config.fields import as_text, expect, shown

ROLES = ("system", "user", "assistant", "tool")
THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # where clients put them
DEEPEST = 100  # levels of lists and objects in a message or tool
NODES = 1_000_000  # values in one message or tool


class Mark(Protocol):
    """A function that marks a text of a message; see `controls.Marker`."""

    def __call__(self, text: str, *, borders: bool = True, inside: bool = False) -> str: ...


class Copy:
    """Copies JSON values and marks their texts. Raises ValueError naming the place of a value that JSON can't hold."""

    def __init__(self, mark: Mark):
        self.mark = mark
        self.nodes = 0

    def text(self, text: str, where: str, **options: bool) -> str:
        return self.mark(as_text(text, where), **options)

    def value(self, value: Any, where: str, depth: int = 0) -> Any:
        self.nodes += 1
        if depth > DEEPEST or self.nodes > NODES:
            raise ValueError(
                f"{where:.100}: expected at most {DEEPEST} levels of lists and objects and {NODES} values, found more"
            )
        if isinstance(value, str):
            return self.text(value, where, borders=not value.isidentifier())
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float):
            expect(math.isfinite(value), where, "a finite number, because JSON has no other", value)
            return value
        if isinstance(value, Mapping):
            table = {}
            for key, each in value.items():
                marked = self.key(key, where)
                table[marked] = self.value(each, f"{where}.{key!s:.50}", depth + 1)
            return table
        if isinstance(value, list | tuple):
            return [self.value(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(value)]
        raise ValueError(f"{where}: expected text, numbers, true, false, null, lists or objects, found {shown(value)}")

    def key(self, key: Any, where: str) -> str:
        expect(isinstance(key, str), where, "texts as keys", key)
        place = f"{where}: key {shown(key)}"
        return self.text(key, place, borders=not key.isidentifier())


def checked_messages(messages: Sequence[Mapping[str, Any]], mark_for: Callable[[str], Mark]) -> list[dict[str, Any]]:
    """Return copies of the messages as templates expect them. Raises ValueError naming what is malformed.

    Content becomes a text, thoughts stand under `reasoning_content`, arguments of tool calls are objects.
    `mark_for(role)` returns the function that marks a role's texts.
    """
    filled = isinstance(messages, list | tuple) and len(messages) > 0
    expect(filled, "messages", "a list of at least one message", messages)
    checked = []
    for i, message in enumerate(messages):
        checked.append(_message(message, f"messages[{i}]", mark_for))
    return checked


def checked_tools(tools: Sequence[Mapping[str, Any]] | None, mark: Mark) -> list[dict[str, Any]] | None:
    """Return checked copies of the tools' descriptions. Raises ValueError naming what is malformed."""
    if tools is None:
        return None
    expect(isinstance(tools, list | tuple), "tools", "a list of tools", tools)
    return [_tool(tool, f"tools[{i}]", mark) for i, tool in enumerate(tools)]


def _message(message: Mapping[str, Any], where: str, mark_for: Callable[[str], Mark]) -> dict[str, Any]:
    expect(isinstance(message, Mapping), where, "role and content", message)
    role = message.get("role")
    expect(role in ROLES, f"{where}: role", f"one of {', '.join(ROLES)}", role)
    copy = Copy(mark_for(str(role)))
    silent = bool(message.get("tool_calls"))
    checked: dict[str, Any] = {}
    for key, value in message.items():
        if key == "role":
            checked[key] = value
        elif key == "content":
            checked[key] = _content(value, silent, where, copy)
        elif key in THOUGHTS and value is not None:
            checked[key] = copy.text(value, f"{where}: {key}", inside=True)
        elif key == "tool_calls":
            checked |= _calls(value, where, copy)
        else:
            place = f"{where}.{key!s:.50}"
            checked[copy.key(key, where)] = copy.value(value, place)
    if "content" not in checked:
        checked["content"] = _content(None, silent, where, copy)
    return _with_thought(checked)


def _with_thought(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with its thought under both names that templates read."""
    for key in THOUGHTS:
        thought = message.get(key)
        if thought is not None:
            return {"thinking": thought, **message, "reasoning_content": thought}
    return message


def _content(content: Any, silent: bool, where: str, copy: Copy) -> str:
    """Return a message's text: as it is, or the parts of a list of texts together, or "" where there are tool calls."""
    if content is None and silent:
        return ""
    if isinstance(content, list | tuple) and content:
        content = "".join(_part(part, f"{where}: content[{i}]") for i, part in enumerate(content))
    return copy.text(content, f"{where}: content", inside=True)


def _part(part: Any, where: str) -> str:
    """Return the text of a part, {"type": "text", "text": …}."""
    found = shown(part)
    if isinstance(part, Mapping):
        kind = part.get("type")
        text = part.get("text")
        if kind == "text" and isinstance(text, str):
            return text
        if isinstance(kind, str) and kind != "text":
            found = f"a part of type {shown(kind)}"
    raise ValueError(f'{where}: expected {{"type": "text", "text": …}}, because models here read text; found {found}')


def _calls(calls: Any, where: str, copy: Copy) -> dict[str, Any]:
    """Return {"tool_calls": …}, or {} for null, which clients send if there are no calls."""
    if calls is None:
        return {}
    place = f"{where}.tool_calls"
    expect(isinstance(calls, list | tuple), place, "a list of calls", calls)
    checked = [_call(call, f"{place}[{j}]", copy) for j, call in enumerate(calls)]
    return {"tool_calls": checked}


def _call(call: Any, where: str, copy: Copy) -> dict[str, Any]:
    """Return a tool call, {"function": {"name", "arguments"}} or only the inner object, with arguments as an object."""
    expect(isinstance(call, Mapping), where, "a function's name and arguments", call)
    if "function" not in call:
        return _function(call, where, copy)
    checked: dict[str, Any] = {}
    for key, value in call.items():
        if key == "function":
            checked[key] = _function(value, f"{where}.function", copy)
        else:
            checked[copy.key(key, where)] = copy.value(value, f"{where}.{key!s:.50}")
    return checked


def _function(function: Any, where: str, copy: Copy) -> dict[str, Any]:
    expect(isinstance(function, Mapping), where, "name and arguments", function)
    _check_name(function, where)
    arguments = _arguments(function.get("arguments"), f"{where}.arguments")
    checked: dict[str, Any] = copy.value({**function, "arguments": arguments}, where)
    return checked


def _arguments(arguments: Any, where: str) -> Mapping[str, Any]:
    """Return arguments as an object. Clients send them as JSON text, and no arguments as "" or null."""
    if arguments is None or arguments == "":
        return {}
    parsed = arguments
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: expected a JSON object, found {shown(arguments)}: {error}") from None
    expect(isinstance(parsed, Mapping), where, "a JSON object", arguments)
    return parsed  # type: ignore[no-any-return]


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no number {constant}")


def _tool(tool: Any, where: str, mark: Mark) -> dict[str, Any]:
    """Return a tool, {"type": "function", "function": {"name", …}} or only the inner object."""
    expect(isinstance(tool, Mapping), where, "a function's name and parameters", tool)
    function = tool
    place = where
    if "function" in tool:
        function = tool["function"]
        place = f"{where}.function"
    expect(isinstance(function, Mapping), place, "name and parameters", function)
    _check_name(function, place)
    parameters = function.get("parameters")
    schema = parameters is None or isinstance(parameters, Mapping)
    expect(schema, f"{place}.parameters", "a JSON schema, an object", parameters)
    checked: dict[str, Any] = Copy(mark).value(tool, where)
    return checked


def _check_name(function: Mapping[str, Any], where: str) -> None:
    name = function.get("name")
    named = isinstance(name, str) and name != ""
    expect(named, f"{where}.name", "the name of a function", name)
