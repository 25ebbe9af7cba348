"""A file has at most 300 lines and a function at most 40."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES = 300, 40


def over_budget(name: str, source: str) -> list[str]:
    """The budgets that `source` exceeds; a function's decorators do not count."""
    lines = len(source.splitlines())
    found = [f"{name} has {lines} lines, more than {FILE_LINES}"] if lines > FILE_LINES else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{name}:{node.lineno} {node.name} has {lines} lines, more than {FUNCTION_LINES}")
    return found


def test_the_package_keeps_its_budgets() -> None:
    paths = sorted((ROOT / "tiny_llm").rglob("*.py"))
    assert paths
    assert [line for path in paths for line in over_budget(str(path.relative_to(ROOT)), path.read_text())] == []


def test_an_excess_is_found() -> None:
    longest = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)
    assert over_budget("a.py", longest) == []
    assert over_budget("a.py", longest + "    x = 1\n") == ["a.py:1 f has 41 lines, more than 40"]
    assert over_budget("a.py", "x = 1\n" * FILE_LINES) == []
    assert over_budget("a.py", "x = 1\n" * (FILE_LINES + 1)) == ["a.py has 301 lines, more than 300"]
