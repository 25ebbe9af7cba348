"""How the course's commands look: plain text, with a little colour where a terminal wants it."""

import os
import sys
from collections.abc import Collection, Iterator

from tiny_llm.course.catalog import Course, Task

CODES = {"red": 31, "green": 32, "dim": 2, "bold": 1}


def paint(text: str, style: str) -> str:
    """`text` in a colour if stdout is a terminal and neither NO_COLOR nor TERM=dumb forbids it."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{CODES[style]}m{text}\x1b[0m" if wanted else text


def bar(done: int, total: int, width: int = 10) -> str:
    """████████░░, or ########-- where the output's encoding has no blocks."""
    full = done * width // total
    try:
        "█░".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#" * full + "-" * (width - full)
    return "█" * full + "░" * (width - full)


def overview(course: Course, passed: Collection[str], skipped: Collection[str]) -> Iterator[str]:
    """A line for each week and one for each of its chapters."""
    for week in sorted({task.week for task in course.tasks}):
        tasks = [task for task in course.tasks if task.week == week]
        done = sum(task.id in passed for task in tasks)
        left = sum(task.minutes for task in tasks if task.id not in passed and task.id not in skipped)
        rest = f"about {left} min left" if left else "all done"
        yield f"Week {week} {bar(done, len(tasks))} {done}/{len(tasks)} · {rest}"
        chapters = dict.fromkeys(task.chapter for task in tasks)
        width = max(20, *(len(f"{chapter} {course.chapters[chapter]}") for chapter in chapters))
        for chapter in chapters:
            yield "  " + _chapter(course, chapter, passed, skipped, width)


def _chapter(course: Course, chapter: str, passed: Collection[str], skipped: Collection[str], width: int) -> str:
    tasks = course.chapter(chapter)
    done = sum(task.id in passed for task in tasks)
    left_out = [task.id for task in tasks if task.id in skipped]
    note = f"  skipped: {', '.join(left_out)}" if left_out else ""
    name = f"{chapter} {course.chapters[chapter]}"
    return f"{name:<{width}} {done}/{len(tasks)}{note}"


def task_line(task: Task, word: str) -> str:
    """`passed  w1.1.1 causal_mask`."""
    style = {"passed": "green", "failed": "red"}.get(word, "dim")
    return f"{paint(f'{word:<7}', style)} {task.id} {task.symbol}"


def failure(message: str) -> str:
    first, _, rest = message.partition("\n")
    return paint(first, "red") + ("\n" + rest if rest else "")
