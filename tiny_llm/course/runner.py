"""Run the tests of tasks in this process: a test is a function of one argument, the checker."""

import importlib
import linecache
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tiny_llm.course import CourseError, NotDone
from tiny_llm.course.catalog import Task
from tiny_llm.course.check import Checker, CheckFailed
from tiny_llm.course.kernel import under_test
from tiny_llm.course.overlay import Overlay, engine_anew

Outcome = Literal["passed", "failed", "undone"]


@dataclass(frozen=True)
class TaskResult:
    """How a task's tests went, and what to tell."""

    task: Task
    state: Outcome
    message: str = ""


def run(tasks: Iterable[Task], root: Path, overlay: Overlay) -> Iterator[TaskResult]:
    """Test the tasks on the learner's files, one after the other, with the engine imported anew."""
    linecache.checkcache()
    with importable(root), engine_anew(overlay):
        for task in tasks:
            if task.id in overlay.undone:
                yield TaskResult(task, "undone", str(NotDone(task.id)))
                continue
            try:
                result = run_task(task, under_test(task), overlay.code)
            except CourseError as error:  # a file that can't be imported, this one or one that its tests need
                result = TaskResult(task, "failed", str(error))
            yield result


def run_task(task: Task, module: ModuleType, code: Path | None = None) -> TaskResult:
    """Test a task on a module."""
    tests = tests_of(task)
    try:
        for test in tests:
            test(Checker(task, module, code=code))
    except NotDone as error:
        return TaskResult(task, "undone", str(error))
    except CheckFailed as error:
        return TaskResult(task, "failed", str(error))
    return TaskResult(task, "passed")


def tests_of(task: Task) -> list[Callable[[Checker], Any]]:
    """The test functions that are marked with the task, in the file's order. Raises CourseError if there are none."""
    module = importlib.import_module(".".join(Path(task.test).with_suffix("").parts))
    found = [test for test in vars(module).values() if getattr(test, "task", None) == task.id]
    if not found:
        raise CourseError(f"{task.test}: no test is marked with {task.id}")
    return found


@contextmanager
def importable(root: Path) -> Iterator[None]:
    """Within it `tests.week1` of the checkout can be imported."""
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))
