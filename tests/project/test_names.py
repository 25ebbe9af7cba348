"""Two things never share a name: each class and each type alias of the package is defined once."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tiny_llm"
CAMEL_CASE = re.compile(r"_?[A-Z]\w*[a-z]\w*|_?[A-Z]")  # a type's name; MAX_ROWS is a constant's


def types_of(source: str) -> Iterator[str]:
    """The names of the classes, type aliases and type variables that a module defines, without a leading underscore."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name.lstrip("_")
        elif type(node).__name__ == "TypeAlias":  # `type X = …`, from Python 3.12 on
            yield ast.unparse(node).split()[1]
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and CAMEL_CASE.fullmatch(target.id):
                    yield target.id.lstrip("_")


def doubles(sources: dict[str, str]) -> list[str]:
    """The names that more than one file defines, with these files."""
    files = defaultdict(list)
    for file, source in sources.items():
        for name in types_of(source):
            files[name].append(file)
    return [f"{name} in {', '.join(places)}" for name, places in sorted(files.items()) if len(places) > 1]


def test_no_two_types_share_a_name() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    assert paths
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    assert doubles(sources) == []


@pytest.mark.parametrize(
    "source",
    [
        "class Entry:\n    pass",
        "class _Entry(NamedTuple):\n    pass",
        "Entry = dict[str, Any]",
        "Entry: TypeAlias = dict[str, Any]",
        "Entry = NamedTuple('Entry', [('a', int)])",
        "Entry = TypeVar('Entry')",
    ],
)
def test_a_shared_name_is_found(source: str) -> None:
    assert doubles({"a.py": "class Entry:\n    pass", "b.py": source}) == ["Entry in a.py, b.py"]


@pytest.mark.parametrize("source", ["from a import Entry", "ENTRY = 1", "entry = 1", "def f():\n    Entry = 1"])
def test_another_use_of_a_name_passes(source: str) -> None:
    assert doubles({"a.py": "class Entry:\n    pass\nENTRY = 2", "b.py": source}) == []
