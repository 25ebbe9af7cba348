"""A file has at most 300 lines of code, in C++, too, and a function at most 60; a room has a budget of lines.

A core room has a budget of density, too. Lines of code are those without blank lines, comments and docstrings. A
function's nodes are those of its syntax tree without the docstring; its lines for the density are those on which a node
begins or ends.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES, FUNCTION_LINES = 300, 60
NODES, NODES_A_LINE, SHORT = 200, 12, 6  # a function of fewer lines than SHORT may be denser
# the core rooms, and the nodes a line that each may average
DENSE = {"config": 8.0, "model": 8.0, "cache": 8.0, "decode": 8.0, "engine": 8.0, "quantize": 8.0, "server": 8.0}
# lines of code that the rooms of each line may have together
ROOMS = {
    "config model cache decode engine quantize": 13_800,
    "kernels": 2_500,
    "kernels/sim": 3_800,
    "server": 4_400,
    "cli": 3_000,
    "views": 1_700,
    "course": 1_700,
    "apps": 3_500,
    "pocket train": 5_000,
}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
CPP_ROOMS = {"kernels/cpu": 2_000}  # lines of code in C++


def lines_of_code(source: str) -> set[int]:
    """The numbers of the lines that are not blank, not a comment alone and not part of a docstring."""
    lines = source.splitlines()
    found = {number for number, line in enumerate(lines, 1) if line.strip() and not line.strip().startswith("#")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            found -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return found


def lines_of_cpp(source: str) -> int:
    return sum(bool(line.strip()) and not line.strip().startswith("//") for line in source.splitlines())


def over_budget(name: str, source: str) -> list[str]:
    """The budgets of lines that `source` exceeds; a function's decorators do not count."""
    counted = lines_of_code(source)
    lines = len(counted)
    found = [f"{name} has {lines} lines of code, more than {FILE_LINES}"] if lines > FILE_LINES else []
    for node in functions(source):
        lines = len(counted & set(range(node.lineno, (node.end_lineno or 0) + 1)))
        if lines > FUNCTION_LINES:
            found.append(f"{name}:{node.lineno} {node.name} has {lines} lines, more than {FUNCTION_LINES}")
    return found


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def density(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[int, int]:
    """Nodes and lines of a function's body."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    nodes = [n for statement in body for n in ast.walk(statement) if not isinstance(n, ast.expr_context)]
    lines = {line for node in nodes if hasattr(node, "lineno") for line in (node.lineno, node.end_lineno)}
    return len(nodes), len(lines)


def too_dense(name: str, source: str) -> list[str]:
    """The functions of `source` with too many nodes, in all or for their lines."""
    found = []
    for function in functions(source):
        nodes, lines = density(function)
        if nodes > NODES or (lines >= SHORT and nodes > NODES_A_LINE * lines):
            found.append(f"{name}:{function.lineno} {function.name} has {nodes} nodes in {lines} lines")
    return found


def sources(folder: str = "") -> list[tuple[str, str]]:
    paths = sorted((ROOT / "tiny_llm" / folder).rglob("*.py"))
    assert paths
    return [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def cpp_sources(folder: str) -> list[tuple[str, str]]:
    paths = [path for path in sorted((ROOT / "tiny_llm" / folder).rglob("*")) if path.suffix in (".h", ".cpp")]
    assert paths
    return [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


def test_the_package_keeps_its_budgets() -> None:
    assert [line for name, source in sources() for line in over_budget(name, source)] == []


@pytest.mark.parametrize("rooms", ROOMS)
def test_rooms_keep_their_budget_of_lines(rooms: str) -> None:
    found = [(name, source) for room in rooms.split() for name, source in sources(room)]
    if rooms == "kernels":  # the simulator has a budget of its own
        found = [(name, source) for name, source in found if not name.startswith("tiny_llm/kernels/sim/")]
    lines = sum(len(lines_of_code(source)) for _, source in found)
    assert lines <= ROOMS[rooms], f"{rooms}: {lines} lines of code, more than {ROOMS[rooms]}"


@pytest.mark.parametrize("room", CPP_ROOMS)
def test_cpp_keeps_its_budgets(room: str) -> None:
    lines = {name: lines_of_cpp(source) for name, source in cpp_sources(room)}
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}
    assert sum(lines.values()) <= CPP_ROOMS[room], f"{room}: {sum(lines.values())} lines of C++"


@pytest.mark.parametrize("room", DENSE)
def test_a_room_in_shape_stays_so(room: str) -> None:
    assert [line for name, source in sources(room) for line in too_dense(name, source)] == []
    counts = [density(function) for _, source in sources(room) for function in functions(source)]
    assert sum(nodes for nodes, _ in counts) <= DENSE[room] * sum(lines for _, lines in counts)


def test_an_excess_is_found() -> None:
    longest = "def f():\n" + "    x = 1\n" * (FUNCTION_LINES - 1)
    assert over_budget("a.py", longest) == []
    assert over_budget("a.py", longest + "    x = 1\n") == ["a.py:1 f has 61 lines, more than 60"]
    assert over_budget("a.py", longest + "\n    # a remark\n") == []
    assert over_budget("a.py", longest.replace(":\n", ':\n    """Do it.\n\n    Well.\n    """\n', 1)) == []
    assert over_budget("a.py", "x = 1\n" * FILE_LINES) == []
    assert over_budget("a.py", "x = 1\n" * (FILE_LINES + 1)) == ["a.py has 301 lines of code, more than 300"]


def test_lines_of_cpp_are_counted() -> None:
    assert lines_of_cpp("#pragma once\n\n// a remark\nint f();  // code\n  // another\n}\n") == 3


def test_density_is_found() -> None:
    dense = "def f(a):\n" + "    b = [x + y for x, y in zip(a, a[1:]) if x and y or a]\n" * 6
    assert too_dense("a.py", dense) == ["a.py:1 f has 150 nodes in 6 lines"]
    assert too_dense("a.py", "def f(a):\n" + "    b = a + 1\n" * 6) == []
    assert too_dense("a.py", "def f(a):\n" + "    b = a + 1\n" * 60) == ["a.py:1 f has 360 nodes in 60 lines"]
