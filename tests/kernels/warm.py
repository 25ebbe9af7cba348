"""Compiled kernels kept between runs of the tests, and made on a second core while the other tests run.

Most of the time of tests on kernels is the C++ compiler's. What it made is kept in pytest's own cache, by content:
`pytest --cache-clear` empties it. The process that this file starts decides nothing: each test launches its kernels
itself, and finds them compiled or compiles them.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("course/test_tasks", "tests/kernels/")
MANY = 200  # tests of kernels; for fewer a second process is not worth its start


def kept(config: pytest.Config) -> Path | None:
    """The folder of compiled kernels; None with `-p no:cacheprovider`."""
    cache = getattr(config, "cache", None)
    return Path(cache.mkdir("kernels")) if cache is not None else None


def forget_others(folder: Path, keep: str) -> None:
    """Remove what another version of the simulator has compiled."""
    for other in (folder / "kernels").glob("*"):
        if other.name != keep:
            shutil.rmtree(other, ignore_errors=True)


def start(session: pytest.Session) -> None:
    """Compile ahead in a process of its own, if there are many kernels to test and a core to do it."""
    folder = kept(session.config)
    rooms = [room for room in ROOMS if sum(room in item.nodeid for item in session.items) >= MANY]
    if folder is None or not rooms or (os.cpu_count() or 1) < 2 or hasattr(session.config, "kernels_ahead"):
        return
    environment = {**os.environ, "TINY_LLM_CACHE": str(folder), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.kernels.warm", *rooms],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    session.config.kernels_ahead = process  # type: ignore[attr-defined]

    def stop() -> None:
        process.kill()
        process.wait()

    session.config.add_cleanup(stop)


def launches(rooms: Sequence[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """A name and a call for each launch to prepare, those that the tests come to last first."""
    import mlx.core as mx

    from tests.kernels.test_mutants import PLACES, mutant
    from tiny_llm.course import mistakes, runner
    from tiny_llm.course.catalog import course
    from tiny_llm.kernels.catalog import CATALOG
    from tiny_llm.kernels.check import check_kernel
    from tiny_llm.kernels.sim import Simulator

    tasks = [task for task in course().tasks if task.is_kernel] if ROOMS[0] in rooms else []
    for task in reversed(tasks):
        for name in reversed(mistakes.names(task)):
            text = mistakes.mistaken_source(task, name)
            yield text, lambda task=task, name=name: runner.run_task(task, mistakes.mistaken(task, name))
    if ROOMS[1] not in rooms:
        return
    for kernel, number, weaker in reversed(PLACES):
        entry, source = CATALOG[kernel], mutant(kernel, number, weaker)
        simulator = Simulator(check=True, replace={kernel: source})
        yield source.header + source.body, lambda e=entry, s=simulator: e.run(e.examples(mx.float32)[0], s)
    for entry in reversed(CATALOG.values()):
        yield entry.kernel.path.read_text(), lambda e=entry: check_kernel(e, {}, 0)


def main(rooms: Sequence[str]) -> None:
    """Launch what was not launched yet with this simulator; a file says of each that it was."""
    import tiny_llm  # noqa: F401  before mlx
    from tiny_llm.kernels.sim import compiler

    os.nice(10)
    done = compiler.folder() / "launched"
    done.mkdir(exist_ok=True)
    for text, launch in launches(rooms):
        mark = done / hashlib.sha256(text.encode()).hexdigest()[:24]
        if mark.exists():
            continue
        with contextlib.suppress(Exception):  # the mutants are wrong, and whatever else is wrong, the tests say
            launch()
        mark.touch()


if __name__ == "__main__":
    main(sys.argv[1:])
