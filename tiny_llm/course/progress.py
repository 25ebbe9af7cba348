"""What a learner has passed, skipped and been told: a small text file in the checkout's root, ignored by git.

A line is a task, its state (passed, skipped or open) and the number of hints seen: `w1.1.2 passed 1`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tiny_llm.course import CourseError

FILE = ".tiny-llm-progress"
TaskState = Literal["open", "passed", "skipped"]
STATES: tuple[TaskState, ...] = ("open", "passed", "skipped")


@dataclass(frozen=True)
class TaskRecord:
    """What is known of one task."""

    state: TaskState = "open"
    hints: int = 0


class Progress:
    """All entries; each change is written at once."""

    def __init__(self, root: Path):
        self.path = root / FILE
        self.entries: dict[str, TaskRecord] = {}
        if self.path.exists():
            for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
                if line.strip() and not line.startswith("#"):
                    task, entry = self._read(line, number)
                    self.entries[task] = entry

    def _read(self, line: str, number: int) -> tuple[str, TaskRecord]:
        words = line.split()
        state = next((state for state in STATES if words[1:2] == [state]), None)
        if len(words) != 3 or state is None or not words[2].isdigit():
            expected = f"TASK {'|'.join(STATES)} HINTS"
            raise CourseError(f"{self.path}:{number}: expected {expected}, found {line!r}; mend or delete the line")
        return words[0], TaskRecord(state, int(words[2]))

    def of(self, task: str) -> TaskRecord:
        return self.entries.get(task, TaskRecord())

    @property
    def skipped(self) -> set[str]:
        return {task for task, entry in self.entries.items() if entry.state == "skipped"}

    def set(self, task: str, *, state: TaskState | None = None, hints: int | None = None) -> None:
        old = self.of(task)
        new = replace(old, state=state or old.state, hints=old.hints if hints is None else hints)
        if new != old:
            self.entries[task] = new
            lines = [f"{task} {entry.state} {entry.hints}\n" for task, entry in sorted(self.entries.items())]
            self.path.write_text("# made by tiny-llm course\n" + "".join(lines), encoding="utf-8")
