"""Exercises as regions of the engine's sources, marked by comments ("//" instead of "#" in Metal and C++):

    # TASK w1.1.2: scores, mask, softmax, weighted sum
    …solution…
    # END TASK

The hints stand in hints/*.toml. Slicing lines keeps the formatting, which a syntax tree would lose.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tiny_llm.course import CourseError
from tiny_llm.course.learner import COMPILED

TASK = re.compile(r"(\s*)(?:#|//) TASK (w\d+\.\d+\.\d+): (.*\S)")
END = re.compile(r"(\s*)(?:#|//) END TASK")
LIKE_A_MARKER = re.compile(r"\s*(?:#|//)\s*(?:TASK|END[ _]?TASK)\b")
HINT = re.compile(r"\s*(?:#|//)\s*HINT\b")
ANCHOR = re.compile(r"\s*(?:#|//) ANCHOR(?:_END)?: ")  # the book's, of no use to a learner
IMPORT = "from tiny_llm.course import NotDone"


@dataclass(frozen=True)
class Region:
    """One exercise: lines[start] is its TASK line, lines[end] its END TASK, and the solution stands between them."""

    task: str
    title: str
    indent: str
    start: int
    end: int

    @property
    def body(self) -> int:
        """The index of the solution's first line."""
        return self.start + 1


def regions(text: str, name: str) -> list[Region]:
    """The exercises of a source. Raises CourseError with `name` and line for markers that do not pair up."""
    lines, found, at = text.splitlines(), list[Region](), 0
    for number, line in enumerate(lines, 1):
        if HINT.match(line):
            raise CourseError(f"{name}:{number}: {line.strip()!r}: hints stand in tiny_llm/course/hints/")
    while at < len(lines):
        if TASK.fullmatch(lines[at]):
            region = _region(lines, at, name)
            if region.task in {other.task for other in found}:
                raise CourseError(f"{name}:{at + 1}: {region.task} is there twice")
            found.append(region)
            at = region.end
        elif LIKE_A_MARKER.match(lines[at]):
            raise CourseError(f"{name}:{at + 1}: {lines[at].strip()!r} outside of a TASK region, or misspelt")
        at += 1
    return found


def _region(lines: Sequence[str], start: int, name: str) -> Region:
    match = TASK.fullmatch(lines[start])
    assert match
    indent, task, title = match.groups()
    for end in range(start + 1, len(lines)):
        line, place = lines[end], f"{name}:{end + 1}: {task}"
        if END.fullmatch(line):
            if not line.startswith(indent) or line[len(indent)].isspace():
                raise CourseError(f"{place}: END TASK is not indented as its TASK is")
            if end == start + 1:
                raise CourseError(f"{place}: no solution between TASK and END TASK")
            return Region(task, title, indent, start, end)
        if LIKE_A_MARKER.match(line):
            raise CourseError(f"{place}: {line.strip()!r} within the region of line {start + 1}")
        if line.strip() and not line.startswith(indent):
            raise CourseError(f"{place}: the block that holds TASK ends before END TASK")
    raise CourseError(f"{name}:{start + 1}: {task}: END TASK is missing")


def solution(text: str, region: Region) -> list[str]:
    """The lines between TASK and END TASK."""
    return text.splitlines()[region.body : region.end]


def stub(text: str, name: str, only: str | None = None) -> str:
    """The learner's file: each region (or `only` one) becomes a line YOUR CODE and one that raises NotDone."""
    marked = regions(text, name)
    chosen = [region for region in marked if only in (None, region.task)]
    lines = text.splitlines()
    for region in reversed(chosen):
        lines[region.start : region.end + 1] = _undone(region, name)
    out = "\n".join(line for line in lines if not ANCHOR.match(line)) + "\n"
    if chosen and not name.endswith(COMPILED):
        out = _with_import(out, name)
    return out


def _undone(region: Region, name: str) -> list[str]:
    if name.endswith(COMPILED):
        return [f"{region.indent}// YOUR CODE ({region.task}): {region.title}", f'#error "NotDone: {region.task}"']
    lines = (f"# YOUR CODE ({region.task}): {region.title}", f'raise NotDone("{region.task}")')
    return [region.indent + line for line in lines]


def _with_import(text: str, name: str) -> str:
    """`text` with NotDone imported, behind its other imports."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise CourseError(f"{name}: line {error.lineno} of the learner's file would be: {error.msg}") from error
    lines = text.splitlines()
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    own = [node for node in imports if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tiny_llm")]
    after = next((node.lineno - 1 for node in own if (node.module or "") > "tiny_llm.course"), None)
    last = imports[-1] if imports else tree.body[0]
    at = last.end_lineno if after is None else after
    lines[at:at] = [IMPORT] if own else ["", IMPORT]
    return "\n".join(lines) + "\n"


def without_markers(text: str, name: str) -> str:
    """The source as somebody who solved every task would have written it: neither markers nor anchors."""
    lines = text.splitlines()
    for region in reversed(regions(text, name)):
        lines[region.start : region.end + 1] = lines[region.body : region.end]
    return "\n".join(line for line in lines if not ANCHOR.match(line)) + "\n"


def with_solution(text: str, region: Region, new: Sequence[str]) -> str:
    """`text` with other lines in the place of a region's solution, markers kept."""
    lines = text.splitlines()
    lines[region.body : region.end] = new
    return "\n".join(lines) + "\n"
