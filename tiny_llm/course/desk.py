"""A learner's desk: the files, the progress, and what can be done with them. Each method prints what it found."""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_llm.course import CourseError, learner, markers, overlay, runner, stubs, views
from tiny_llm.course.catalog import Course, Task, course, find_root, read_source
from tiny_llm.course.overlay import Overlay
from tiny_llm.course.progress import Progress

MINE = "mine"


def code_folder(name: str, root: Path | None = None) -> Path:
    """The folder that `--code NAME` means: "mine" is code/ of the checkout, anything else a folder."""
    folder = (root or find_root()) / "code" if name == MINE else Path(os.path.expanduser(name)).absolute()
    if not folder.is_dir():
        raise CourseError(f"{name}: no such folder; --code mine takes code/ of the checkout")
    return folder


def install(name: str) -> Overlay:
    """Let the engine run on the learner's files, `name` as for --code. For a process that has not imported it yet."""
    root = find_root()
    made = Overlay(code_folder(name, root), Progress(root).skipped)
    overlay.install(made)
    return made


@dataclass
class Desk:
    """Where a learner works: the checkout, the folder of the files, the tasks and how far they are."""

    root: Path
    code: Path
    course: Course
    progress: Progress

    @classmethod
    def open(cls, name: str = MINE) -> "Desk":
        root = find_root()
        return cls(root, code_folder(name, root), course(), Progress(root))

    def overlay(self, without: Sequence[str] = ()) -> Overlay:
        """The files as they are now; the skipped tasks, except `without`, borrowed."""
        return Overlay(self.code, self.progress.skipped - set(without), self.course)

    def task(self, task_id: str | None) -> Task:
        """The named task, or the next one. Raises CourseError where nothing is left."""
        if task_id is not None:
            return self.course.task(task_id)
        for task in self.course.tasks:
            if self.progress.of(task.id).state == "open":
                return task
        raise CourseError("no open task is left; name one, such as w1.1.1")

    def status(self) -> None:
        passed = {task.id for task in self.course.tasks if self.progress.of(task.id).state == "passed"}
        print("\n".join(views.overview(self.course, passed, self.progress.skipped)))

    def next(self) -> None:
        """Tell what is to be done next."""
        if all(self.progress.of(task.id).state != "open" for task in self.course.tasks):
            print("nothing: every task is passed or skipped")
            return
        task = self.task(None)
        print(f"{task.id}    {task.title} (about {task.minutes} min)")
        print(f"write     {task.symbol} in {self.place(task)}")
        print(f"chapter   {task.chapter} {self.course.chapters[task.chapter]}{self._page(task)}")
        if task.needs:
            states = {need: self.progress.of(need).state for need in task.needs}
            owners = {"passed": "yours", "skipped": "the reference's", "open": "not passed yet"}
            print(f"builds on {', '.join(f'{need} ({owners[state]})' for need, state in states.items())}")
        print(f"test      tiny-llm course test {task.id}")

    def place(self, task: Task) -> str:
        """`file:line` of the marker YOUR CODE, or of the function once that is gone."""
        path = self.code / task.file
        if not path.is_file():
            return f"{learner.short(path)} (missing: `tiny-llm course reset {path.name}` makes it)"
        text = learner.read(path)
        marked = [i for i, line in enumerate(text.splitlines(), 1) if f"YOUR CODE ({task.id})" in line]
        kernel = path.suffix in learner.COMPILED
        node = None if marked or kernel else learner.find(learner.parse(text, path), task.symbol)
        return f"{learner.short(path)}:{marked[0] if marked else node.lineno if node else 1}"

    def _page(self, task: Task) -> str:
        pages = sorted((self.root / "book" / "src").rglob(f"{task.chapter.replace('.', '-')}-*.md"))
        return f": {learner.short(pages[0])}" if pages else ""

    def test(self, task_id: str | None = None, everything: bool = False) -> bool:
        """Test one task, or the tasks in order: up to the first that fails, or all. Whether nothing failed."""
        skipped, good = self.progress.skipped, True
        chosen = [self.task(task_id)] if task_id else [task for task in self.course.tasks if task.id not in skipped]
        for result in runner.run(chosen, self.root, self.overlay([task.id for task in chosen])):
            task = result.task
            self.progress.set(task.id, state="passed" if result.state == "passed" else "open")
            if result.state == "undone" and not everything:
                print(f"{views.task_line(task, 'to do')}: {self.place(task)}")
                return good and task_id is None
            print(views.task_line(task, {"undone": "to do"}.get(result.state, result.state)))
            if result.state == "failed":
                print(views.failure(result.message))
                good = False
                if not everything:
                    break
        return good

    def hint(self, task_id: str | None = None, level: int | None = None) -> None:
        """Show one hint more than before, or that of a level."""
        task = self.task(task_id)
        seen = self.progress.of(task.id).hints
        number = min(seen + 1, len(task.hints)) if level is None else level
        if not 1 <= number <= len(task.hints):
            raise CourseError(f"{task.id}: hints go from 1 to {len(task.hints)}, found {number}")
        self.progress.set(task.id, hints=max(seen, number))
        print(f"{task.id} hint {number} of {len(task.hints)}: {task.hints[number - 1]}")

    def diff(self, task_id: str | None = None, give_up: bool = False) -> None:
        """Show the learner's function and the reference's. Raises CourseError before it passed, unless given up."""
        task = self.task(task_id)
        if self.progress.of(task.id).state != "passed" and not give_up:
            raise CourseError(f"{task.id} is not passed: `tiny-llm course hint {task.id}`, or --give-up")
        path = self.code / task.file
        mine = learner.function_lines(learner.read(path), task.symbol, path)
        reference = markers.without_markers(read_source(task.source), task.source)
        theirs = learner.function_lines(reference, task.symbol, Path(task.source))
        titles = (f"yours: {learner.short(path)}", f"reference: {task.source}")
        lines = list(difflib.unified_diff(mine, theirs, *titles, n=999, lineterm=""))
        print("\n".join(lines) if lines else f"{task.id}: yours is the reference's, word for word")

    def skip(self, task_id: str | None = None) -> None:
        task = self.task(task_id)
        self.progress.set(task.id, state="skipped")
        again = f"`tiny-llm course test {task.id}` takes it up again"
        print(f"{task.id} is skipped: the reference's {task.symbol} runs; {again}")

    def reset(self, what: str) -> None:
        """Put back the stub of a task or of a whole file. What was there is copied first."""
        file = next((file for file in self.course.files if what in (file, Path(file).name)), None)
        if not file and self.course.task(what).is_kernel:
            file = self.course.task(what).file
        tasks = self.course.of_file(file) if file else [self.course.task(what)]
        copy = stubs.reset_file(self.code, file) if file else stubs.reset_task(self.code, tasks[0])
        for task in tasks:
            self.progress.set(task.id, state="open", hints=0)
        saved = f"; what you had is in {learner.short(copy)}" if copy else ""
        print(f"{learner.short(self.code / tasks[0].file)}: {what} is as it was at the beginning{saved}")

    def stubs(self, check: bool) -> bool:
        """Bring code/ of the checkout up to date, or only say what is stale. False if `check` found anything."""
        if check:
            stale = stubs.stale(self.code)
            for file in stale:
                print(f"{learner.short(self.code / file)} is not what the sources give: solved, or stale")
            return not stale
        for file, copy in stubs.write(self.code):
            former = f", its former text is in {learner.short(copy)}" if copy else ""
            print(f"{learner.short(self.code / file)} written{former}")
        return True
