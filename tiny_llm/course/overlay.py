"""The learner's files in the place of the engine's modules; what is not done yet is borrowed from the reference.

An import hook: while it is installed, `tiny_llm.model.attention` is code/week1/attention.py. A function that still
raises NotDone keeps its identity but runs the reference's code, on the learner's globals. So whatever it calls is the
learner's, and a table that already holds it (`ops.PLAIN`) holds the right one.
"""

import functools
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from operator import attrgetter
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import tiny_llm
from tiny_llm.course import CourseError, kernel, learner, native
from tiny_llm.course.catalog import Course, Task, course, module_of, read_source, source_path

LAUNCH = "tiny_llm.kernels.launch"  # asks for other sources of its kernels
BUILD = "tiny_llm.kernels.cpu.build"  # and for other headers of the CPU's
STAYS = {"", "_blas", "cli", "config", "course", "doctor", "pocket", "train", "views"}  # hold no learner's code


class Overlay(MetaPathFinder, Loader):
    """The learner's files below `code`. Raises CourseError for one that Python can't read.

    `undone`: tasks that still raise NotDone. `borrowed`: these and the skipped ones.
    """

    def __init__(self, code: Path, skipped: Collection[str] = (), of: Course | None = None):
        self.course, self.code = of or course(), code
        present = {file: code / file for file in self.course.files if (code / file).is_file()}
        if not present:
            raise CourseError(f"{code}: none of the course's files is here, such as {next(iter(self.course.files))}")
        modules = {file: path for file, path in present.items() if path.suffix == ".py"}
        self.paths = {module_of(self.course.files[file]): path for file, path in modules.items()}
        self.undone = {task.id for task in self.course.tasks if task.file not in present}
        for path in present.values():
            self.undone |= learner.undone(learner.read(path), path)
        self.borrowed = self.undone | set(skipped)
        self.kernels = [path for path in present.values() if path.suffix == learner.METAL]
        for path in self.kernels:
            tasks = self._tasks(path)
            self.borrowed |= tasks if tasks & (self.borrowed - self.undone) else set()
        if self.kernels:
            self.paths[LAUNCH] = source_path("tiny_llm/kernels/launch.py")
        self.headers = [path for path in present.values() if path.suffix == learner.HEADER and self._is_own(path)]
        if self.headers:
            self.paths[BUILD] = source_path("tiny_llm/kernels/cpu/build.py")

    def _tasks(self, path: Path) -> set[str]:
        """The ids of a file's tasks."""
        return {task.id for task in self.course.of_file(path.relative_to(self.code).as_posix())}

    def _is_own(self, path: Path) -> bool:
        return not self._tasks(path) & self.borrowed

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.paths:
            return None
        return spec_from_file_location(name, self.paths[name], loader=self)

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual kind of module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the learner's file, without a bytecode cache: its time stamps are too coarse for somebody who edits."""
        path = self.paths[module.__name__]
        text = learner.read(path)
        learner.parse(text, path)
        try:
            exec(compile(text, str(path), "exec", dont_inherit=True), module.__dict__)
        except CourseError:
            raise
        except Exception as error:
            raise CourseError(f"{place(error, path) or learner.short(path)}: {describe(error)}") from error
        if module.__name__ == LAUNCH:
            module.replaced.update(self._sources(module))
        if module.__name__ == BUILD:
            module.replaced.update({header.name: header for header in self.headers})
        mine = [task for task in self.course.tasks if task.module == module.__name__]
        for task in mine:
            check_presence(module, task, path)
        for task in mine:
            if task.id in self.borrowed:
                borrow(module, task)

    def _sources(self, launch: ModuleType) -> Mapping[str, Any]:
        """The learner's kernels as the launcher wants them, what is not done filled in."""
        made = {}
        for path in self.kernels:
            tasks = self.course.of_file(path.relative_to(self.code).as_posix())
            made[path.stem] = launch.Source.parse(kernel.filled(learner.read(path), tasks, self.borrowed), path)
        return made

    @property
    def own_kernels(self) -> list[str]:
        """The Metal kernels of which a part is the learner's."""
        return self._own(native=False)

    @property
    def own_native(self) -> list[str]:
        """The functions of the CPU's kernels that are the learner's."""
        return self._own(native=True)

    def _own(self, native: bool) -> list[str]:
        mine = [task for task in self.course.tasks if task.is_kernel and task.id not in self.borrowed]
        return list(dict.fromkeys(task.symbol for task in mine if task.is_native == native))

    def compile_headers(self) -> None:
        """Compile the learner's headers alone, which takes a second. Raises CourseError where one can't be."""
        for path in self.headers:
            native.compile_header(path)

    @property
    def runs_lesson(self) -> bool:
        """Whether answers come from the loop of week 1: it is the learner's, and the scheduler of week 3 is not yet."""
        done = {task.symbol for task in self.course.tasks if task.id not in self.borrowed}
        return bool(done & {"prefill", "generate_tokens"}) and not done & {"Scheduler.schedule", "Scheduler.finish"}

    def __str__(self) -> str:
        """`yours: attention, apply_rope · reference: the rest`. Whole chapters go by their titles."""
        yours: list[str] = []
        for chapter, title in self.course.chapters.items():
            tasks = self.course.chapter(chapter)
            done = [task.symbol for task in tasks if task.id not in self.borrowed]
            yours += [title] if len(done) == len(tasks) else dict.fromkeys(done)
        return f"yours: {', '.join(yours) or 'nothing yet'} · reference: the rest"


def check_presence(module: ModuleType, task: Task, path: Path) -> None:
    try:
        attrgetter(task.symbol)(module)
    except AttributeError:
        remedy = f"`tiny-llm course reset {task.id}` shows how it looks"
        raise CourseError(f"{learner.short(path)}: {task.symbol} ({task.id}) is missing; {remedy}") from None


def borrow(module: ModuleType, task: Task) -> None:
    """Let the function run the reference's code."""
    function = attrgetter(task.symbol)(module)
    function.__code__ = reference_code(task)


def reference_code(task: Task) -> CodeType:
    code = reference_module(task.source)
    for name in task.symbol.split("."):
        code = next(c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return code


@functools.cache
def reference_module(source: str) -> CodeType:
    return compile(read_source(source), str(source_path(source)), "exec", dont_inherit=True)


def place(error: BaseException, path: Path) -> str | None:
    """`file:line` of the last call within the file (or below the folder) `path`, if there is one."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f for f in frames if Path(f.filename) == path or path in Path(f.filename).parents]
    return f"{learner.short(Path(inside[-1].filename))}:{inside[-1].lineno}" if inside else None


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def install(overlay: Overlay) -> None:
    """Let imports take the learner's files from now on. Raises CourseError where the engine is imported already."""
    early = sorted(overlay.paths.keys() & sys.modules.keys())
    if early:
        raise CourseError(f"{early[0]} is imported already: the learner's files must come first")
    sys.meta_path.insert(0, overlay)


@contextmanager
def engine_anew(overlay: Overlay | None = None) -> Iterator[None]:
    """Within it the engine (and the course's tests) is imported afresh, with the overlay; afterwards all is as before.

    The names taken out of its modules before keep working, but they belong to other modules of the same names.
    """
    before = {name: module for name, module in sys.modules.items() if _holds_learners_code(name)}
    rooms = {name.split(".")[1] for name in before if name.startswith("tiny_llm.")}
    attributes = {room: vars(tiny_llm)[room] for room in rooms if room in vars(tiny_llm)}
    _forget()
    if overlay is not None:
        sys.meta_path.insert(0, overlay)
    try:
        yield
    finally:
        if overlay is not None:
            sys.meta_path.remove(overlay)
        _forget()
        sys.modules.update(before)
        vars(tiny_llm).update(attributes)


def _forget() -> None:
    for name in [name for name in sys.modules if _holds_learners_code(name)]:
        del sys.modules[name]


def _holds_learners_code(name: str) -> bool:
    top, _, rest = name.partition(".")
    return (top == "tiny_llm" and rest.partition(".")[0] not in STAYS) or name.startswith("tests.week")
