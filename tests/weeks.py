"""The checker that each test of a week gets: on the engine, or with --code on a learner's files."""

import pytest

from tiny_llm.course import CourseError
from tiny_llm.course.catalog import course
from tiny_llm.course.check import Checker
from tiny_llm.course.kernel import under_test
from tiny_llm.course.native import widths
from tiny_llm.course.overlay import Overlay


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Checker:
    task = course().task(request.function.task)
    overlay: Overlay | None = getattr(request.config, "overlay", None)
    if task.is_kernel and overlay is None:
        request.getfixturevalue("kernel_cache")
    if task.is_native:
        try:
            widths()
        except CourseError as error:
            pytest.skip(str(error))
    return Checker(
        task, under_test(task), bool(overlay and task.id in overlay.undone), overlay.code if overlay else None
    )
