"""The checks of the course's tests: they compare, and where something differs they say what is wrong.

    @task("w1.1.1")
    def test_causal_mask(check: Checker) -> None:
        check(lambda m: m.causal_mask(4, 4), want, axes="T S")

The first argument computes from the module under test, so that the same call can also be made on a mistaken
reference: where the results agree, the mistake has its name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from tiny_llm.course import NotDone, kernel, mistakes
from tiny_llm.course.catalog import Task
from tiny_llm.course.compare import as_numpy, difference
from tiny_llm.course.overlay import describe, place

Call = Callable[[Any], Any]
Test = TypeVar("Test", bound=Callable[..., None])


class CheckFailed(AssertionError):  # noqa: N818  what it says is no error of the program
    """A result that is not the expected one; the text is written for the learner."""


@dataclass(frozen=True)
class Raised:
    """What a call raised instead of a result."""

    error: Exception

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and self.known_by() == other.known_by()

    def known_by(self) -> object:
        return kernel.signature(self.error) or describe(self.error)


def task(task_id: str) -> Callable[[Test], Test]:
    """Say which task a test function is for."""

    def mark(test: Test) -> Test:
        test.task = task_id  # type: ignore[attr-defined]
        return test

    return mark


@dataclass
class Checker:
    """Checks one task on a module. `code` is the folder of the learner's files, to point at lines in them."""

    task: Task
    module: ModuleType = field(repr=False)
    undone: bool = False
    code: Path | None = None
    calls: list[tuple[Call, Any]] = field(default_factory=list, repr=False)

    def __call__(
        self, call: Call, want: Any, *, axes: str = "", what: str = "", dtype: mx.Dtype | None = None, terms: int = 1
    ) -> None:
        """Compare `call(module)` with `want`, an array of numpy's (for one of MLX's) or any other value.

        axes: names of the result's axes, such as "T H D". what: how the result is called, the task's symbol if not
        given. dtype: the expected one, float32 for numbers. terms: length of the longest sum within, for rounding.
        Raises NotDone, or CheckFailed with what to tell.
        """
        __tracebackhide__ = True
        if self.undone:
            raise NotDone(self.task.id)
        got = evaluate(call, self.module)
        self.calls.append((call, got))
        found = self._raised(got) if isinstance(got, Raised) else difference(got, want, axes.split(), dtype, terms)
        if not found:
            return
        name = None if isinstance(got, Raised) and kernel.is_unreadable(got.error) else next(self._named(), None)
        if name:
            found[1] += f' — matches the mistake "{name}"'
        lines = [f"{self.task.id} {what or self.task.symbol}: {found[0]}", *found[1:]]
        cause = got.error if isinstance(got, Raised) else None
        raise CheckFailed("\n".join([*lines, f"try: tiny-llm course hint {self.task.id}"])) from cause

    def _raised(self, got: Raised) -> list[str]:
        path = self.code / self.task.file if self.code and self.task.is_kernel else None
        if told := kernel.lesson(got.error, path):
            return told
        where = place(got.error, self.code) if self.code else None
        return [f"raised an error{' at ' + where if where else ''}", describe(got.error)]

    def _named(self) -> Iterator[str]:
        """The catalogued mistakes that would have given all that this test has seen so far."""
        for name in mistakes.names(self.task):
            module = mistakes.mistaken(self.task, name)
            if all(same(evaluate(call, module), got) for call, got in self.calls):
                yield name


def evaluate(call: Call, module: ModuleType) -> Any:
    """What the call gives, as numpy arrays and plain values, or what it raised."""
    __tracebackhide__ = True
    try:
        got = call(module)
        if isinstance(got, mx.array):
            mx.eval(got)
        return got
    except NotDone:
        raise
    except Exception as error:
        return Raised(error)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, mx.array) and isinstance(b, mx.array):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        return bool(np.allclose(as_numpy(a), as_numpy(b), rtol=1e-4, atol=1e-5, equal_nan=True))
    return type(a) is type(b) and bool(a == b)
