"""Run the compiler of the CPU kernels, and say what failed."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# a failure of the machine and not of the sources, which another start may not meet
PASSING = re.compile(
    r"Killed|signal terminated program|terminated signal|due to signal|No space left|quota exceeded|out of memory"
    r"|memory exhausted|Cannot allocate memory|Resource temporarily unavailable|Input/output error|bad_alloc"
    r"|MemoryError",
    re.IGNORECASE,
)
OTHER_CACHE = "set TINY_LLM_CACHE to another folder"
OTHER_COMPILER = "set CXX to another compiler"


ROOM = 16 << 20  # bytes on the disk that compiling takes


class NoKernelsError(Exception):
    """The CPU kernels can't be used here; the message says why, and what to do."""


class UnusableSettingError(NoKernelsError):
    """They could be used if CXX or TINY_LLM_CACHE named something else."""


@contextmanager
def blaming(thing: Path | str, remedy: str) -> Iterator[None]:
    """Turn an OSError into a NoKernelsError that names the file that the error names, else `thing`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        kind = UnusableSettingError if remedy in (OTHER_CACHE, OTHER_COMPILER) else NoKernelsError
        raise kind(f"{error.filename or thing} can't be used: {reason}; {remedy}") from error


def run_together(commands: Sequence[Sequence[str]], making: Path, fault: Path) -> None:
    """Run commands of the compiler side by side. The first that fails ends the others, with their child processes."""
    running: dict[subprocess.Popen[bytes], BinaryIO] = {}
    environment = os.environ | {"LC_ALL": "C"}  # PASSING has English words
    try:
        for command in commands:
            words: BinaryIO = os.fdopen(os.memfd_create("stderr"), "w+b")  # the disk may be full
            with blaming(command[0], OTHER_COMPILER):
                process = subprocess.Popen(command, stderr=words, env=environment, start_new_session=True)
            running[process] = words
        while running:
            for process in [process for process in running if process.poll() is not None]:
                with running.pop(process) as words:
                    words.seek(0)
                    said = words.read().decode(errors="replace")
                if process.returncode != 0:
                    _check_room(making)
                _check(commands[0][0], said, process.returncode, fault)
            time.sleep(0.01)
    finally:
        for process in running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check_room(folder: Path) -> None:
    """Raise NoKernelsError where a folder's disk is full: the compiler and the linker then say this and that."""
    free = shutil.disk_usage(folder).free
    if free < ROOM:
        cache = folder.parents[2]
        raise UnusableSettingError(
            f"the disk of {cache} is full: the kernels need {ROOM >> 20} MB, and {free >> 20} are free; make room, or "
            + OTHER_CACHE
        )


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
