"""Evaluate arithmetic expressions. An expression is parsed, never run: it can't call or read anything."""

import ast
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from tiny_llm.apps.agent.tools import ToolError

LONGEST = 1_000  # characters of an expression
MOST_BITS = 4_000  # of a power's result
LARGEST = 10**1_500  # a result with more digits is not written
DEEPEST = 100  # operations inside one another
Value = Any  # a Fraction, or a float where the result is irrational
OPERATORS: Mapping[type, Callable[[Value, Value], Value]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def calculate(expression: str) -> str:
    """Return the value of an expression of numbers with + - * / // % ** and parentheses, to four decimals."""
    wrong = ToolError(f"not an expression: {expression[:LONGEST]}")
    if len(expression) > LONGEST:
        raise ToolError(f"the expression has more than {LONGEST} characters")
    try:
        tree = ast.parse(expression.strip(), mode="eval")
        return number_text(value_of_node(tree.body, wrong))
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except OverflowError:
        raise too_large() from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise error if isinstance(error, ToolError) else wrong from None


def too_large() -> ToolError:
    return ToolError("the result is too large")


def number_text(value: Value) -> str:
    """Write a number with at most four decimals, and none where they are 0."""
    rounded = round(value, 4)
    if abs(rounded) >= LARGEST:
        raise too_large()
    if rounded == int(rounded):
        return str(int(rounded))
    return f"{float(rounded):.4f}".rstrip("0")


def value_of_node(node: ast.expr, wrong: ToolError, depth: int = 0) -> Value:
    """Return the value of a part of an expression. Numbers are exact: 0.1 + 0.2 is 0.3."""
    if depth > DEEPEST:
        raise wrong
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = value_of_node(node.operand, wrong, depth + 1)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise wrong
    left = value_of_node(node.left, wrong, depth + 1)
    right = value_of_node(node.right, wrong, depth + 1)
    if isinstance(node.op, ast.Pow):
        return power(left, right)
    apply = OPERATORS.get(type(node.op))
    if apply is None:
        raise wrong
    return apply(left, right)


def power(base: Value, exponent: Value) -> Value:
    """Return base ** exponent. Raises ToolError for a result that is too large, or that is no real number."""
    whole = exponent == int(exponent)
    bits = abs(base).numerator.bit_length() + abs(base).denominator.bit_length() if isinstance(base, Fraction) else 64
    if whole and bits * abs(exponent) > MOST_BITS:
        raise too_large()
    if whole:
        return base ** int(exponent)
    result = float(base) ** float(exponent)
    if isinstance(result, complex):
        raise ToolError("the result is no real number")
    return result
