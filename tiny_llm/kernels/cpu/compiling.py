"""Run the compiler of the CPU kernels, and say what failed."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# a failure of the machine and not of the sources, which another start may not meet
PASSING = re.compile(
    r"Killed|signal terminated program|terminated signal|due to signal|No space left|quota exceeded|out of memory"
    r"|memory exhausted|Cannot allocate memory|Resource temporarily unavailable|Input/output error|bad_alloc"
    r"|MemoryError",
    re.IGNORECASE,
)
OTHER_CACHE = "set TINY_LLM_CACHE to another folder"
OTHER_COMPILER = "set CXX to another compiler"


class NoKernelsError(Exception):
    """The CPU kernels can't be used here; the message says why, and what to do."""


@contextmanager
def blaming(thing: Path | str, remedy: str) -> Iterator[None]:
    """Turn an OSError into a NoKernelsError that names the file that the error names, else `thing`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise NoKernelsError(f"{error.filename or thing} can't be used: {reason}; {remedy}") from error


def run_together(commands: Sequence[Sequence[str]], making: Path, fault: Path) -> None:
    """Run commands of the compiler side by side. The first that fails ends the others, with their child processes."""
    running: dict[subprocess.Popen[bytes], Path] = {}
    environment = os.environ | {"LC_ALL": "C"}  # PASSING has English words
    try:
        for number, command in enumerate(commands):
            words = making / f"stderr-{number}"
            with words.open("wb") as stderr, blaming(command[0], OTHER_COMPILER):
                process = subprocess.Popen(command, stderr=stderr, env=environment, start_new_session=True)
            running[process] = words
        while running:
            for process in [process for process in running if process.poll() is not None]:
                words = running.pop(process)
                _check(commands[0][0], words.read_text(errors="replace"), process.returncode, fault)
            time.sleep(0.01)
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check(command: str, words: str, code: int, fault: Path) -> None:
    """Raise NoKernelsError with the first error in the compiler's words, unless its exit code is 0."""
    if code == 0:
        return
    name = Path(command).name
    if code < 0:
        raise NoKernelsError(f"{name} was ended by signal {-code} while it compiled them")
    errors = [line for line in words.splitlines() if "error" in line]
    first = (errors or words.splitlines() or [f"exit {code}, without a message"])[0]
    complaint = f"{name} can't compile them: {first}"
    if not PASSING.search(words):
        remember(complaint, fault)
    raise NoKernelsError(complaint)


def remember(complaint: str, fault: Path) -> None:
    """Write a failure into the file `fault`, so that later processes report it without trying again."""
    written = fault.with_suffix(".new")
    with suppress(OSError):  # then a later process tries again
        written.write_text(complaint)
        os.replace(written, fault)
