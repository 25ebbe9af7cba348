"""Catalogued mistakes: small replacements in the reference's solutions, each with the name that a learner reads.

From one declaration come both uses: a check compares a learner's result with the mistaken reference's, and the tests
of the course apply each mistake and demand that it is noticed and named.
"""

import functools
from collections.abc import Mapping, Sequence
from types import CodeType, ModuleType

from tiny_llm.course import CourseError, markers, toml
from tiny_llm.course.catalog import Task, read_source, source_path
from tiny_llm.course.kernel import Launchers
from tiny_llm.course.native import Native, together


@functools.cache
def catalogue() -> Mapping[str, Mapping[str, Sequence[str]]]:
    """Task id → name of the mistake → old text, new text, and so on in pairs."""
    found: dict[str, Mapping[str, Sequence[str]]] = {}
    for path in sorted((toml.HERE / "mistakes").glob("*.toml")):
        found |= toml.load(path)
    return found


def names(task: Task) -> list[str]:
    return list(catalogue().get(task.id, ()))


@functools.cache
def mistaken_source(task: Task, name: str) -> str:
    """The reference's file with one mistake. Raises CourseError unless each old text is in the solution once."""
    pairs = catalogue()[task.id][name]
    text = read_source(task.source)
    region = next(region for region in markers.regions(text, task.source) if region.task == task.id)
    solution = "\n".join(markers.solution(text, region))
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        if solution.count(old) != 1:
            raise CourseError(f"{task.id}: mistake {name!r}: {old!r} is {solution.count(old)} times in the solution")
        solution = solution.replace(old, new)
    return markers.with_solution(text, region, solution.splitlines())


def as_module(text: str, task: Task) -> ModuleType:
    """A module of the task's own name, made from other source text; it is not entered among the imported ones.

    For a `.metal` text the launchers that run it, for a header's what compiles and runs it."""
    if task.is_native:
        return Native(task, text)
    if task.is_kernel:
        return Launchers(task, text)
    module = ModuleType(task.module)
    module.__file__ = str(source_path(task.source))
    module.__package__ = task.module.rpartition(".")[0]
    exec(compiled(text, task.module), module.__dict__)
    return module


@functools.lru_cache(maxsize=256)
def compiled(text: str, module: str) -> CodeType:
    """Python's code of a changed module: each mistake is tried many times, once for every wrong result."""
    return compile(text, f"<{module}, changed>", "exec", dont_inherit=True)


def mistaken(task: Task, name: str) -> ModuleType:
    if task.is_native:
        texts = [mistaken_source(task, other) for other in names(task)]
        return Native(task, together(texts), names(task).index(name))
    return as_module(mistaken_source(task, name), task)
