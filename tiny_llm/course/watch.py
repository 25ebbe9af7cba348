"""Test on every save, and listen to a few keys meanwhile."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from watchfiles import DefaultFilter
from watchfiles import watch as changes

from tiny_llm.course import CourseError, learner, views
from tiny_llm.course.desk import Desk
from tiny_llm.course.stubs import SAVED

TICK = 100  # ms between two looks at the keyboard
HELP = "h hint · d diff · l list · n next · q quit"


def watch(desk: Desk) -> None:
    """Test when a file below the desk's folder is saved, until q or Ctrl-C (which during a test only ends that)."""
    keys: dict[str, Callable[[], object]] = {"h": desk.hint, "d": desk.diff, "l": desk.status, "n": desk.next}
    options: dict[str, Any] = {"step": 30, "debounce": 200, "rust_timeout": TICK, "yield_on_timeout": True}
    begun = False
    with keyboard() as pressed:
        for saved in changes(desk.code, watch_filter=LearnerFiles(desk.code), raise_interrupt=False, **options):
            if saved or not begun:  # the first time round the watcher is at work, so that no save is missed
                test(desk)
            if not begun:
                keys_known = f" · {HELP}" if sys.stdin.isatty() else ""
                print(views.paint(f"watching {learner.short(desk.code)}{keys_known}", "dim"), flush=True)
                begun = True
            for key in pressed():
                if key == "q":
                    return
                told(keys.get(key, lambda: print(HELP)))


class LearnerFiles(DefaultFilter):
    """The learner's files, without editors' leftovers and saved copies."""

    def __init__(self, code: Path):
        super().__init__(ignore_paths=[str(code / SAVED)])

    def __call__(self, change: object, path: str) -> bool:
        return path.endswith((".py", *learner.COMPILED)) and super().__call__(change, path)  # type: ignore[arg-type]


def test(desk: Desk) -> None:
    begin = time.perf_counter()
    told(desk.test)
    print(views.paint(f"({time.perf_counter() - begin:.1f} s)", "dim"), flush=True)


def told(action: Callable[[], object]) -> None:
    """Do it; what the learner's files make impossible is told, and watching goes on."""
    try:
        action()
    except CourseError as error:
        print(views.failure(str(error)))
    except KeyboardInterrupt:
        print("stopped; another Ctrl-C ends watching")
    sys.stdout.flush()


@contextmanager
def keyboard() -> Iterator[Callable[[], str]]:
    """A function that returns the keys pressed since its last call, without waiting for Enter."""
    if not sys.stdin.isatty():
        yield str
        return

    stream = sys.stdin.fileno()
    before = termios.tcgetattr(stream)
    tty.setcbreak(stream)

    def pressed() -> str:
        ready, _, _ = select.select([stream], [], [], 0)
        return os.read(stream, 64).decode(errors="ignore") if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(stream, termios.TCSADRAIN, before)
