"""Tools: their schemas as a model sees them, the check of a call, and errors that a model can act on."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tiny_llm.config.fields import require, shown
from tiny_llm.decode.tool_values import Schema, dump_json, list_of, properties_of, resolved, types_of

ToolArguments = Mapping[str, Any]
RunTool = Callable[[ToolArguments], str | Awaitable[str]]
JSON_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


class ToolError(ValueError):
    """A call that failed. Its message is the call's result, so the model can correct the call."""


@dataclass(frozen=True)
class AgentTool:
    """A tool that a model may call. `parameters` is the JSON schema of its arguments.

    `run` takes the checked arguments and returns the result as text, or raises ToolError. It runs in a thread of its
    own, or in the event loop if it is a coroutine function. `effects`: a call changes something outside of the
    conversation, so it needs an approval. `foreign`: the result holds text that the user did not write, such as a
    file's, which may hold instructions of an attacker.
    """

    name: str
    description: str
    parameters: Schema
    run: RunTool
    effects: bool = False
    foreign: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The tool as a function of the OpenAI API."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


def by_name(tools: "list[AgentTool]") -> dict[str, AgentTool]:
    """Return tools by name, in their order. Raises ValueError for two tools of one name."""
    found: dict[str, AgentTool] = {}
    for tool in tools:
        require(tool.name not in found, f"tools: expected different names, found {shown(tool.name)} twice; rename one")
        found[tool.name] = tool
    return found


def check_arguments(parameters: Schema, arguments: Any) -> None:
    """Raise ToolError unless `arguments` fit the schema: known names, no required name missing, types and choices.

    This looks at the top level. A tool checks the values inside lists and objects itself.
    """
    if not isinstance(arguments, Mapping):
        raise ToolError("the arguments are no JSON object")
    known = properties_of(parameters)
    for name in list_of(parameters, "required"):
        if name not in arguments:
            raise ToolError(f"the argument {name} is missing")
    for name, value in arguments.items():
        if name in known:
            _check_value(name, value, known[name], parameters)
        elif known or "additionalProperties" not in parameters:
            listed = ", ".join(known) or "none"
            raise ToolError(f"unknown argument {shown(name)}; known are {listed}")


def _check_value(name: str, value: Any, schema: Any, root: Schema) -> None:
    types = types_of(schema, root)
    if types and not any(_has_type(value, each) for each in types):
        raise ToolError(f"{name}: expected {' or '.join(sorted(types))}, found {shown(value)}")
    choices = list_of(resolved(schema, root), "enum")
    if choices and value not in choices:
        listed = ", ".join(map(dump_json, choices))
        raise ToolError(f"{name}: expected one of {listed}, found {shown(value)}")


def _has_type(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    return isinstance(value, JSON_TYPES.get(name, object))
