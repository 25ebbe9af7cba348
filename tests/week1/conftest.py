"""The checker that each test of a week gets: on the engine, or with --code on a learner's files."""

import importlib

import pytest

from tiny_llm.course.catalog import course
from tiny_llm.course.check import Checker
from tiny_llm.course.overlay import Overlay


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Checker:
    task = course().task(request.function.task)
    overlay: Overlay | None = getattr(request.config, "overlay", None)
    module = importlib.import_module(task.module)
    return Checker(task, module, bool(overlay and task.id in overlay.undone), overlay.code if overlay else None)
