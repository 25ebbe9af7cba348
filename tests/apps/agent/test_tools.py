"""Calculator, clock, schemas and the check of arguments."""

import asyncio
import datetime
from typing import Literal

import pytest

from tiny_llm.apps.agent.calculator import calculate
from tiny_llm.apps.agent.clock import tell_time
from tiny_llm.apps.agent.loop import tool_schema
from tiny_llm.apps.agent.tools import AgentTool, ToolError, by_name, check_arguments
from tiny_llm.apps.agent.typed import function_tool
from tiny_llm.config.prompts import builtin_tools

NOW = datetime.datetime(2026, 3, 6, 14, 5)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 2", "4"),
        ("10 / 4", "2.5"),
        ("1 / 3", "0.3333"),
        ("0.1 + 0.2", "0.3"),
        ("-2 ** 2", "-4"),
        ("2 ** 10", "1024"),
        ("7 % 3 + 5 // 2", "3"),
        ("(1 + 2) * 3", "9"),
        ("2 ** 0.5", "1.4142"),
        ("1_000 * 2", "2000"),
        ("2 ** -1", "0.5"),
    ],
)
def test_the_calculator_calculates(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("1 / 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("__import__('os').getcwd()", "not an expression"),
        ("(1).real", "not an expression"),
        ("'a' * 3", "not an expression"),
        ("True + 1", "not an expression"),
        ("1 +", "not an expression"),
        ("1e999", "not an expression"),
        ("a", "not an expression"),
        ("9 ** 9 ** 9", "too large"),
        ("(-8) ** 0.5", "no real number"),
        ("(" * 400 + "1" + ")" * 400, "not an expression"),
        ("-" * 900 + "1", "not an expression"),
        ("1+" * 1000, "more than"),
        ("\0", "not an expression"),
    ],
)
def test_the_calculator_refuses(expression: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        calculate(expression)


def test_the_clock() -> None:
    def tell(date: str | None = None, days: int | None = None, until: str | None = None) -> str:
        return tell_time(date, days, until, lambda: NOW)

    assert tell() == "Friday 2026-03-06 14:05"
    assert tell(days=10) == "Monday 2026-03-16"
    assert tell("2026-01-31") == "Saturday 2026-01-31"
    assert tell("2026-03-01", -1) == "Saturday 2026-02-28"
    assert tell(until="2026-04-20") == "45 days"
    assert tell("2026-04-20", until="2026-03-06") == "-45 days"
    for date in ("tomorrow", "2026-02-30", ""):
        with pytest.raises(ToolError, match=f"not a date: {date}"):
            tell(date)
    with pytest.raises(ToolError, match="out of the calendar"):
        tell(days=10**12)


SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "line": {"type": "integer"}, "mode": {"enum": ["r", "w"]}},
    "required": ["path"],
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the argument path is missing"),
        ({"path": 3}, "path: expected string, found 3"),
        ({"path": "a", "line": True}, "line: expected integer"),
        ({"path": "a", "line": 1.5}, "line: expected integer"),
        ({"path": "a", "mode": "x"}, 'mode: expected one of "r", "w"'),
        ({"path": "a", "other": 1}, "unknown argument 'other'; known are path, line, mode"),
        ([1], "no JSON object"),
    ],
)
def test_arguments_are_checked(arguments: object, message: str) -> None:
    with pytest.raises(ToolError) as raised:
        check_arguments(SCHEMA, arguments)
    assert message in str(raised.value)


def test_good_arguments_pass() -> None:
    check_arguments(SCHEMA, {"path": "a", "line": 3, "mode": "r"})
    for tool in builtin_tools().tools.values():
        parameters = tool.schema["function"]["parameters"]
        example = {name: 1 if schema["type"] == "integer" else "x" for name, schema in tool.properties.items()}
        check_arguments(parameters, example)


def convert(
    amount: float, to: Literal["EUR", "USD"], digits: int = 2, notes: list[str] | None = None
) -> dict[str, float]:
    """Convert an amount of money
    at today's rate.

    Longer words that the model is not shown.
    """
    return {to: round(amount * 2, digits)}


def test_a_typed_function_becomes_a_tool() -> None:
    schema = tool_schema(convert)
    assert schema["name"] == "convert"
    assert schema["description"] == "Convert an amount of money at today's rate."
    parameters = schema["parameters"]
    assert parameters["required"] == ["amount", "to"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["to"]["enum"] == ["EUR", "USD"]
    assert parameters["properties"]["digits"] == {"default": 2, "title": "Digits", "type": "integer"}
    tool = function_tool(convert, effects=False)
    assert tool.run({"amount": 1.5, "to": "EUR"}) == '{"EUR": 3.0}'
    with pytest.raises(ToolError, match=r"notes.*found 3"):
        tool.run({"amount": 1.5, "to": "EUR", "notes": 3})
    assert (tool.effects, tool.foreign) == (False, True)


def test_a_function_must_say_its_types() -> None:
    for function in (lambda x: x, lambda *values: values):
        with pytest.raises(ValueError, match="expected a parameter with a type"):
            tool_schema(function)


def test_results_that_are_no_json() -> None:
    def deep() -> list[object]:
        """Give lists inside one another."""
        found: list[object] = []
        for _ in range(10_000):
            found = [found]
        return found

    def odd() -> object:
        """Give what JSON can't hold."""
        return {"x": float("nan"), "y": {1, 2}}

    assert "nan" in str(function_tool(odd).run({}))
    with pytest.raises(ToolError, match="too many lists"):
        function_tool(deep).run({})


def test_a_coroutine_function_is_awaited() -> None:
    async def twice(x: int) -> int:
        """Double a number."""
        return 2 * x

    tool = function_tool(twice)
    assert asyncio.run(tool.run({"x": 21})) == "42"  # type: ignore[arg-type]
    with pytest.raises(ToolError, match=r"x: .*found 'a'"):
        asyncio.run(tool.run({"x": "a"}))  # type: ignore[arg-type]


def test_names_are_different() -> None:
    tool = AgentTool("a", "", {}, lambda _: "")
    with pytest.raises(ValueError, match="'a' twice"):
        by_name([tool, tool])
