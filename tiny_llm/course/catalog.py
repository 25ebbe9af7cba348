"""What the course consists of: its tasks in order, and the files that they are in. Read from course.toml."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tiny_llm.course import CourseError, hints, learner, markers, toml

PACKAGE = toml.HERE.parent


@dataclass(frozen=True)
class Task:
    """One exercise. `file` is below code/, `source` and `test` below the checkout; `symbol` is what to write."""

    id: str
    chapter: str
    title: str
    hints: tuple[str, ...]
    file: str
    source: str
    symbol: str
    test: str
    minutes: int
    needs: tuple[str, ...]

    @property
    def week(self) -> int:
        return int(self.chapter.partition(".")[0])

    @property
    def module(self) -> str:
        return module_of(self.source)

    @property
    def is_kernel(self) -> bool:
        """Whether its file is compiled: a Metal kernel, or a header of the CPU's kernels."""
        return self.source.endswith(learner.COMPILED)

    @property
    def is_native(self) -> bool:
        """Whether its file is a header of the CPU's kernels."""
        return self.source.endswith(learner.HEADER)


@dataclass(frozen=True)
class Course:
    """All tasks in order, the chapters' titles, and each learner's file with its source."""

    tasks: tuple[Task, ...]
    chapters: Mapping[str, str]
    files: Mapping[str, str]

    def task(self, task_id: str) -> Task:
        """Raises CourseError, with what there is, for an unknown id."""
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise CourseError(f"{task_id}: no such task; the first is {self.tasks[0].id}, the last {self.tasks[-1].id}")

    def of_file(self, file: str) -> list[Task]:
        return [task for task in self.tasks if task.file == file]

    def chapter(self, chapter: str) -> list[Task]:
        return [task for task in self.tasks if task.chapter == chapter]


def module_of(source: str) -> str:
    """tiny_llm.model.rope for tiny_llm/model/rope.py."""
    return ".".join(PurePosixPath(source).with_suffix("").parts)


def source_path(source: str) -> Path:
    """Where the engine's source lies, in a checkout or installed."""
    return PACKAGE.parent / source


def read_source(source: str) -> str:
    return source_path(source).read_text(encoding="utf-8")


@functools.cache
def course() -> Course:
    """The course as course.toml, the markers and the hints say. Raises CourseError where they do not fit together."""
    data = toml.load(toml.HERE / "course.toml")
    files: dict[str, str] = data["files"]
    marked = {
        file: {region.task: region for region in markers.regions(read_source(source), source)}
        for file, source in files.items()
    }
    listed = [entry["id"] for chapter in data["chapter"] for entry in chapter["tasks"]]
    for source, found in zip(files.values(), marked.values(), strict=True):
        if extra := found.keys() - set(listed):
            raise CourseError(f"course.toml: {', '.join(sorted(extra))} of {source} is missing")
    told = hints.read(listed)
    tasks = [_task(entry, chapter, files, marked, told) for chapter in data["chapter"] for entry in chapter["tasks"]]
    return Course(tuple(tasks), {chapter["id"]: chapter["title"] for chapter in data["chapter"]}, files)


def _task(
    entry: Mapping[str, Any],
    chapter: Mapping[str, Any],
    files: Mapping[str, str],
    marked: Mapping[str, Mapping[str, markers.Region]],
    told: Mapping[str, tuple[str, ...]],
) -> Task:
    task, file = entry["id"], entry["file"]
    region = marked[file].get(task)
    if region is None:
        raise CourseError(f"{files[file]}: the region of {task} is missing")
    needs = tuple(entry.get("needs", ()))
    where = (file, files[file], entry["symbol"], chapter["test"])
    return Task(task, chapter["id"], region.title, told[task], *where, entry["minutes"], needs)


def find_root() -> Path:
    """The checkout: the folder at or above the current one that holds code/ and tests/ of the course."""
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        if (folder / "code" / "week1").is_dir() and (folder / "tests" / "week1").is_dir():
            return folder
    raise CourseError(f"{here}: no code/week1 and tests/week1 here or above; the course needs a checkout of tiny-llm")
