"""Exercises in `.metal` files: run in the simulator's check mode, and what it finds told as a lesson."""

import importlib
import re
from collections.abc import Callable, Collection, Iterable
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from tiny_llm.course import NotDone, learner, markers
from tiny_llm.course.catalog import Task, read_source
from tiny_llm.course.native import Native

SECONDS = 5.0  # for a launch; the tests' arrays are small
UNDONE = re.compile(r"NotDone: (w\d+\.\d+\.\d+)")  # as the compiler repeats it
LESSONS = {  # the simulator's words for a fault → why it is one
    "out of bounds": "The grid may have more threads than there are elements, and an index may be computed wrong; what "
    "lies there is another array's, or nobody's.",
    "race": "Two threads use one place, one of them writes, and nothing says which is first: it may come out right "
    "here and wrong on a GPU.",
    "uninitialised read": "What lies there is left over from before; outputs, threadgroup memory and a thread's own "
    "variables do not begin as 0.",
    "output not written": "Each element of an output needs a thread that writes it.",
    "barrier divergence": "A barrier waits for every thread of its group; the GPU hangs, or does anything.",
    "collective divergence": "simd_sum and its like take a value from each of the 32 lanes; one that is elsewhere has "
    "none to give.",
    "write to an input": "An input is shared by whoever else uses the array.",
    "time limit": "On a GPU the machine's screen would freeze until the driver ends the kernel.",
}


class Launchers(ModuleType):
    """The functions of tiny_llm.kernels as they are imported now, in check mode: `launchers.rms_norm(x, weight, eps)`.

    text: of the task's `.metal` file, in place of the one that would be taken. Groups are whole, as on CUDA, so that
    an index without a guard is noticed. A call raises NotDone for what is to be written still, and KernelError.
    """

    def __init__(self, task: Task, text: str | None = None):
        super().__init__(f"launchers of {task.symbol}")
        self.of, self.text = task, text

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        launch = getattr(importlib.import_module("tiny_llm.kernels"), name)

        @wraps(launch)
        def checked(*arguments: Any, **options: Any) -> Any:
            try:
                return launch(*arguments, **{"on": self._simulator(), **options})
            except ValueError as error:
                if found := UNDONE.search(getattr(error, "stderr", "")):
                    raise NotDone(found[1]) from None
                raise

        return checked

    def _simulator(self) -> Any:
        sim = importlib.import_module("tiny_llm.kernels.sim")
        path = Path(self.of.source)
        replace = {} if self.text is None else {path.stem: sim.Source.parse(self.text, path)}
        return sim.Simulator(check=True, whole_groups=True, replace=replace, seconds=SECONDS)


def under_test(task: Task) -> ModuleType:
    """What a task's tests call: its module as it is imported now, the kernels' launchers, or a compiled header."""
    if task.is_native:
        return Native(task)
    return Launchers(task) if task.is_kernel else importlib.import_module(task.module)


def filled(text: str, tasks: Iterable[Task], borrowed: Collection[str]) -> str:
    """A learner's `.metal` file with the reference's solution where an `#error` still stands. `tasks` are the file's.

    If any of them is borrowed although it is written, all are: nobody can tell whose line is whose.
    """
    tasks = list(tasks)
    source = tasks[0].source
    reference = read_source(source)
    if {task.id for task in tasks} & set(borrowed) - set(learner.NOT_DONE.findall(text)):
        return reference
    regions = {region.task: region for region in markers.regions(reference, source)}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if found := learner.NOT_DONE.fullmatch(line):
            lines[number] = in_one_line(markers.solution(reference, regions[found[1]]))
    return "\n".join(lines)


def in_one_line(lines: Iterable[str]) -> str:
    """Statements without their comments and line breaks, so that what stands below keeps its number."""
    bare = [re.sub(r"//.*", "", line).strip() for line in lines]
    return " ".join(f"\n{line}\n" if line.startswith("#") else line for line in bare)


def signature(error: Exception) -> list[tuple[str, str, str]]:
    """What is found, without the places where: equal for the same mistake in other words."""
    findings = getattr(error, "findings", [])
    return sorted({(f.kind, re.sub(r"variable `\w+`|\d+", "", f.text), f.remedy) for f in findings})


def is_unreadable(error: Exception) -> bool:
    """Whether it is the compiler's: none of the catalogued mistakes is one."""
    return getattr(error, "findings", None) == []


def lesson(error: Exception, path: Path | None) -> list[str] | None:
    """The lines to tell of a kernel's error; None if it is none. `path`: the learner's file, where it is one.

    A fault is told with its line, what happened there, why it matters, and what to do; more of them only by number.
    """
    findings = getattr(error, "findings", None)
    if findings is None:
        return None
    if not findings:
        first, *rest = str(error).splitlines()
        name = Path(first.partition(" ")[0]).name
        return ["does not compile", *(line.replace(f"{name}:", f"{learner.short(path)}:", 1) if path else line
                                      for line in rest)]  # fmt: skip
    first = findings[0]
    place = f"{learner.short(path) if path else first.file}{f':{first.line}' if first.line else ''}"
    lines = [f"{first.kind} at {place}", first.text]
    if path and 0 < first.line <= len(text := learner.read(path).splitlines()):
        lines.append(f"  {first.line} | {text[first.line - 1].strip()}")
    lines += [why] if (why := LESSONS.get(first.kind)) else []
    lines.append(f"{first.remedy}{'' if first.remedy.endswith('?') else '.'}")
    if len(findings) > 1:
        lines.append(f"(and {len(findings) - 1} more of its kind or behind it: `tiny-llm kernels check` shows all)")
    return lines
