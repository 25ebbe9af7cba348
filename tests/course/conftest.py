"""A learner's checkout: a copy of code/, with the project's own tests beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Run, own_state, run  # noqa: F401
from tests.kernels.conftest import kernel_cache  # noqa: F401
from tiny_llm.course import markers, stubs
from tiny_llm.course.catalog import course, read_source

ROOT = Path(__file__).parents[2]
Solve = Callable[..., None]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which nothing is solved yet, and the current folder."""
    root = tmp_path / "checkout"
    for file, text in stubs.generate().items():
        path = root / "code" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(root)
    monkeypatch.setenv("NO_COLOR", "1")
    return root


@pytest.fixture
def solve(checkout: Path) -> Solve:
    """`solve("w1.1.1", "w1.1.2")` puts the reference's solutions in; `old=new` pairs in `changes` spoil them."""

    def solve(*tasks: str, changes: tuple[tuple[str, str], ...] = ()) -> None:
        for task_id in tasks:
            task = course().task(task_id)
            path = checkout / "code" / task.file
            text = solved(path.read_text(encoding="utf-8"), task_id)
            for old, new in changes:
                assert old in text
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")

    return solve


def solved(text: str, task_id: str) -> str:
    """A learner's file with the reference's solution of one task in the place of its NotDone."""
    task = course().task(task_id)
    source = read_source(task.source)
    region = next(region for region in markers.regions(source, task.source) if region.task == task_id)
    lines = text.splitlines()
    marks = (f'raise NotDone("{task_id}")', f'#error "NotDone: {task_id}"')
    at = next(i for i, line in enumerate(lines) if line.strip() in marks)
    lines[at - 1 : at + 1] = markers.solution(source, region)
    return "\n".join(lines) + "\n"
