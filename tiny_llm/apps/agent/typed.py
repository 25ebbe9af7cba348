"""Tools from typed Python functions."""

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError, validate_call

from tiny_llm.apps.agent.loop import tool_schema
from tiny_llm.apps.agent.tools import AgentTool, RunTool, ToolArguments, ToolError
from tiny_llm.decode.tool_values import dump_json


def function_tool(function: Callable[..., Any], *, effects: bool = True, foreign: bool = True) -> AgentTool:
    """Return a tool that calls a typed function; a coroutine function is awaited.

    A result that is no text is written as JSON. `effects` and `foreign` are assumed unless the caller says otherwise,
    because a signature can't tell. Raises ValueError for a parameter without a type.
    """
    schema = tool_schema(function)
    checked = validate_call(function)
    run: RunTool
    if inspect.iscoroutinefunction(function):

        async def run_async(arguments: ToolArguments) -> str:
            try:
                return written(await checked(**arguments))
            except ValidationError as error:
                raise ToolError(in_words(error)) from None

        run = run_async
    else:

        def run_plain(arguments: ToolArguments) -> str:
            try:
                return written(checked(**arguments))
            except ValidationError as error:
                raise ToolError(in_words(error)) from None

        run = run_plain
    return AgentTool(schema["name"], schema["description"], schema["parameters"], run, effects, foreign)


def written(result: Any) -> str:
    """Return a function's result as text. Raises ToolError for one that is too deep to be written."""
    if isinstance(result, str):
        return result
    try:
        return dump_json(result)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return str(result)
    except RecursionError:
        raise ToolError("the result has too many lists and objects inside one another") from None


def in_words(error: ValidationError) -> str:
    """Return the first fault of pydantic in one line: "days: Input should be a valid integer, found 'x'"."""
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}, found {fault['input']!r:.100}"
