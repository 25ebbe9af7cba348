"""The hints of the exercises. Each task has a table in hints/*.toml:

    ["w1.1.1"]
    question = "With 6 keys and 2 queries, at which positions do the queries stand?"
    approach = "Make a column of the queries' positions and a row of the keys'; …"
    pseudocode = "key <= query, …"

A learner reads them one by one, in this order.
"""

from collections.abc import Collection
from pathlib import Path

from tiny_llm.course import CourseError, toml

FOLDER = toml.HERE / "hints"
LEVELS = ("question", "approach", "pseudocode")


def read(tasks: Collection[str], folder: Path = FOLDER) -> dict[str, tuple[str, ...]]:
    """Read the hints of each of the `tasks`, one for each of LEVELS.

    Raises CourseError with the file and the name for a task or a level that is missing or unknown, for a task in the
    wrong file, and for a hint that is empty or no text.
    """
    found = {}
    for path in sorted(folder.glob("*.toml")):
        for task, table in toml.load(path).items():
            if task not in tasks:
                raise CourseError(f"{path}: {task}: no such task in course.toml")
            if path.name != file_of(task):
                raise CourseError(f"{path}: {task}: its hints belong in {file_of(task)}")
            found[task] = _levels(table, f"{path}: {task}")
    for task in tasks:
        if task not in found:
            raise CourseError(f"{folder / file_of(task)}: {task}: no hints; add a table with {', '.join(LEVELS)}")
    return found


def file_of(task: str) -> str:
    """The name of the file with a task's hints: week1.toml for w1.2.3, w2-10.toml for w2.10.1."""
    week, chapter, _ = task.split(".")
    return "week1.toml" if week == "w1" else f"{week}-{chapter}.toml"


def _levels(table: object, where: str) -> tuple[str, ...]:
    """The texts of a task's table in the order of LEVELS."""
    if not isinstance(table, dict):
        raise CourseError(f"{where}: expected a table with {', '.join(LEVELS)}, found {table!r}")
    for level in table:
        if level not in LEVELS:
            raise CourseError(f"{where}: {level}: no such level; the levels are {', '.join(LEVELS)}")
    for level in LEVELS:
        if level not in table:
            raise CourseError(f"{where}: {level} is missing")
        text = table[level]
        if not isinstance(text, str) or not text.strip():
            raise CourseError(f"{where}: {level}: expected a text, found {text!r}")
    return tuple(table[level] for level in LEVELS)
