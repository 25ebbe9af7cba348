"""Catalogued mistakes: small replacements in the reference's solutions, each with the name that a learner reads.

From one declaration come both uses: a check compares a learner's result with the mistaken reference's, and the tests
of the course apply each mistake and demand that it is noticed and named.
"""

import functools
from collections.abc import Mapping
from types import ModuleType

from tiny_llm.course import CourseError, markers
from tiny_llm.course.catalog import HERE, Task, load_toml, read_source, source_path

Replacement = tuple[str, str]


@functools.cache
def catalogue() -> Mapping[str, Mapping[str, Replacement]]:
    """Task id → name of the mistake → what is replaced by what."""
    found: dict[str, dict[str, Replacement]] = {}
    for path in sorted((HERE / "mistakes").glob("*.toml")):
        for task, entries in load_toml(path.read_text(encoding="utf-8")).items():
            found[task] = {name: (old, new) for name, (old, new) in entries.items()}
    return found


def names(task: Task) -> list[str]:
    return list(catalogue().get(task.id, ()))


@functools.cache
def mistaken_source(task: Task, name: str) -> str:
    """The reference's file with one mistake. Raises CourseError unless its text is in the solution exactly once."""
    old, new = catalogue()[task.id][name]
    text = read_source(task.source)
    region = next(region for region in markers.regions(text, task.source) if region.task == task.id)
    solution = "\n".join(markers.solution(text, region))
    if solution.count(old) != 1:
        raise CourseError(f"{task.id}: mistake {name!r}: {old!r} is {solution.count(old)} times in the solution")
    return markers.with_solution(text, region, solution.replace(old, new).splitlines())


def as_module(text: str, task: Task) -> ModuleType:
    """A module of the task's own name, made from other source text; it is not entered among the imported ones."""
    module = ModuleType(task.module)
    module.__file__ = str(source_path(task.source))
    module.__package__ = task.module.rpartition(".")[0]
    exec(compile(text, f"<{task.module}, changed>", "exec", dont_inherit=True), module.__dict__)
    return module


def mistaken(task: Task, name: str) -> ModuleType:
    return as_module(mistaken_source(task, name), task)
