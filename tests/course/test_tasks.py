"""Each task: unsolved it fails as not done, the reference passes, each catalogued mistake is noticed and named."""

from pathlib import Path

import pytest

from tests.course.conftest import ROOT, solved
from tiny_llm.course import learner, markers, mistakes, runner, stubs
from tiny_llm.course.catalog import Task, course, read_source
from tiny_llm.course.kernel import under_test
from tiny_llm.course.overlay import Overlay

TASKS = course().tasks
ALTERNATIVES = Path(__file__).parent / "alternatives"
MISTAKES = [(task, name) for task in TASKS for name in mistakes.names(task)]


@pytest.fixture(autouse=True)
def cache_of_kernels(request: pytest.FixtureRequest) -> None:
    """Where a test runs a kernel; without a compiler it is skipped."""
    parameters = getattr(request.node, "callspec", None)
    if parameters is None or parameters.params["task"].is_kernel:
        request.getfixturevalue("kernel_cache")


def name(value: object) -> str:
    return value.id if isinstance(value, Task) else str(value)


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_unsolved_it_is_not_done_and_nothing_else(task: Task) -> None:
    """All else is solved, and nothing is borrowed: the task's own NotDone is all that can stop it."""
    module = mistakes.as_module(markers.stub(read_source(task.source), task.source, only=task.id), task)
    result = runner.run_task(task, module)
    assert (result.state, result.message) == ("undone", f"{task.id} is not done yet")


@pytest.mark.parametrize("task", TASKS, ids=name)
def test_the_reference_passes(task: Task) -> None:
    result = runner.run_task(task, under_test(task))
    assert result.message == ""
    assert result.state == "passed"


@pytest.mark.parametrize(("task", "mistake"), MISTAKES, ids=name)
def test_a_mistake_is_noticed_and_named(task: Task, mistake: str) -> None:
    result = runner.run_task(task, mistakes.mistaken(task, mistake))
    assert result.state == "failed"
    assert f'— matches the mistake "{mistake}"' in result.message
    assert result.message.endswith(f"try: tiny-llm course hint {task.id}")


def test_every_task_has_at_least_three_mistakes() -> None:
    assert {task.id: len(mistakes.names(task)) for task in TASKS if len(mistakes.names(task)) < 3} == {}
    assert mistakes.catalogue().keys() == {task.id for task in TASKS}


@pytest.mark.parametrize("form", ["einsum", "loops"])
@pytest.mark.parametrize("task", TASKS, ids=name)
def test_another_correct_solution_passes(task: Task, form: str) -> None:
    path = ALTERNATIVES / form / Path(task.file).name
    other = learner.function_lines(path.read_text(encoding="utf-8"), task.symbol, path)
    text = learner.with_function(read_source(task.source), task.symbol, other, path)
    assert text != read_source(task.source)
    result = runner.run_task(task, mistakes.as_module(text, task))
    assert result.message == ""
    assert result.state == "passed"


def test_everything_solved_in_the_learners_files_passes(checkout: Path) -> None:
    """Through the overlay, with each solution put where its NotDone was."""
    for file, text in stubs.generate().items():
        for task in course().of_file(file):
            text = solved(text, task.id)
        (checkout / "code" / file).write_text(text, encoding="utf-8")
    overlay = Overlay(checkout / "code")
    assert overlay.borrowed == set()
    assert [r.message for r in runner.run(TASKS, ROOT, overlay) if r.state != "passed"] == []


def test_no_solution_is_left_in_the_learners_files() -> None:
    """Not three lines of one in a row (or the whole, if it is shorter than that)."""
    for source in course().files.values():
        text = read_source(source)
        stub = [line.strip() for line in markers.stub(text, source).splitlines() if line.strip()]
        for region in markers.regions(text, source):
            lines = [line.strip() for line in markers.solution(text, region) if line.strip()]
            size = min(3, len(lines))
            runs = [lines[i : i + size] for i in range(len(lines) - size + 1)]
            assert [run for run in runs if any(stub[i : i + size] == run for i in range(len(stub)))] == [], region.task


def test_an_exercise_is_at_most_25_lines() -> None:
    for source in set(course().files.values()):
        for region in markers.regions(read_source(source), source):
            assert region.end - region.body <= 25, region.task


def test_tasks_stand_in_order_and_build_on_earlier_ones() -> None:
    ids = [task.id for task in TASKS]
    assert ids == sorted(ids, key=lambda task: [int(number) for number in task[1:].split(".")])
    for task in TASKS:
        assert set(task.needs) <= set(ids[: ids.index(task.id)]), task.id
        assert task.id.startswith(f"w{task.chapter}.")
        assert 5 <= task.minutes <= 60
