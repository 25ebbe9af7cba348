"""What a learner's file says, found out by reading it, not by running it."""

import ast
import re
from pathlib import Path

from tiny_llm.course import CourseError

Function = ast.FunctionDef | ast.AsyncFunctionDef
METAL, HEADER = ".metal", ".h"
COMPILED = (METAL, HEADER)  # a kernel's file: its functions are not told apart, the file is one
NOT_DONE = re.compile(r'^[ \t]*#error "NotDone: (w\d+\.\d+\.\d+)"[ \t]*$', re.MULTILINE)


def parse(text: str, path: Path) -> ast.Module:
    """Raises CourseError naming file, line and what Python says of it."""
    try:
        return ast.parse(text, str(path))
    except SyntaxError as error:
        line = (error.text or "").strip()
        shown = f": {line}" if line else ""
        raise CourseError(f"{short(path)}:{error.lineno}: syntax error, {error.msg}{shown}") from error


def undone(text: str, path: Path) -> set[str]:
    """The ids in `raise NotDone("…")`, or `#error "NotDone: …"`. Raises CourseError as `parse` does."""
    if path.suffix in COMPILED:
        return set(NOT_DONE.findall(text))
    return {
        argument.value
        for node in ast.walk(parse(text, path))
        if isinstance(node, ast.Raise) and isinstance(call := node.exc, ast.Call)
        if isinstance(call.func, ast.Name) and call.func.id == "NotDone"
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }


def find(tree: ast.Module, symbol: str) -> Function | None:
    """The function, or with "Class.method" the method, of that name; the last one, as for Python."""
    nodes: list[ast.stmt] = tree.body
    found: ast.stmt | None = None
    for name in symbol.split("."):
        wanted = [node for node in nodes if isinstance(node, ast.ClassDef | Function) and node.name == name]
        if not wanted:
            return None
        found = wanted[-1]
        assert isinstance(found, ast.ClassDef | Function)
        nodes = found.body
    return found if isinstance(found, Function) else None


def extent(node: Function) -> slice:
    """Its lines, decorators included, as indices."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return slice(first - 1, node.end_lineno)


def function_lines(text: str, symbol: str, path: Path) -> list[str]:
    """The source of one function. Raises CourseError where it is not there."""
    if path.suffix in COMPILED:
        return text.splitlines()
    node = find(parse(text, path), symbol)
    if node is None:
        raise CourseError(f"{short(path)}: {symbol} is missing; `tiny-llm course reset` puts it back")
    return text.splitlines()[extent(node)]


def with_function(text: str, symbol: str, new: list[str], path: Path) -> str:
    """`text` with one function replaced."""
    if path.suffix in COMPILED:
        return "\n".join(new) + "\n"
    node = find(parse(text, path), symbol)
    if node is None:
        raise CourseError(f"{short(path)}: {symbol} is missing; reset the whole file: {path.name}")
    lines = text.splitlines()
    lines[extent(node)] = new
    return "\n".join(lines) + "\n"


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CourseError(f"{short(path)}: expected UTF-8 text: {error}") from error


def short(path: Path) -> str:
    """The path as seen from the current folder, where it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
