"""Run Python code in a process of its own, confined and within limits of time, memory and output."""

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tiny_llm.apps.agent.tools import ToolError

SCRIPT = Path(__file__).with_name("confine.py")
UNCONFINED = 97  # the script's exit code where the system can't confine a process
SECONDS = 10
MEGABYTES = 1024
LONGEST_OUTPUT = 1_000_000  # bytes; then the process is killed
PROBE = "open('probe', 'w')"  # must fail, because the working directory may only be read
PROFILE = """(version 1)(allow default)(deny network*)(deny process-fork)(deny file-write*)
(allow file-write* (subpath "{scratch}") (literal "/dev/null"))
(deny file-read-data (subpath "{home}"))
(allow file-read-data (subpath "{root}") (subpath "{scratch}") (subpath "{prefix}") (subpath "{base}"))"""


class PythonLimits(NamedTuple):
    """Limits of a run of Python code: seconds, megabytes of memory, and bytes of output."""

    seconds: int = SECONDS
    megabytes: int = MEGABYTES
    output: int = LONGEST_OUTPUT


class Ran(NamedTuple):
    """What a run of Python code printed, the error in one line, and the exit code."""

    printed: str
    error: str
    code: int


def run_python(code: str, folder: Path, limits: PythonLimits | None = None) -> str:
    """Return what the code prints. It may read `folder`, its working directory. Raises ToolError where it fails."""
    limits = limits or PythonLimits()
    try:
        ran = run_confined(code, folder, limits)
    except UnicodeEncodeError:
        raise ToolError("SyntaxError: the code has half of a surrogate pair") from None
    if ran.code == UNCONFINED:
        raise ToolError(ran.error.strip())
    if ran.code == 0:
        return ran.printed
    lines = ran.error.strip().splitlines()
    message = lines[-1] if lines else f"the process ended with code {ran.code}"
    if ran.printed:
        message += f"\nprinted before: {ran.printed}"
    raise ToolError(message)


@cache
def can_confine() -> bool:
    """Return whether this system can keep Python code from files, the network and other processes."""
    with tempfile.TemporaryDirectory(prefix="tiny-llm-") as folder:
        try:
            probed = run_confined(PROBE, Path(folder), PythonLimits())
        except (OSError, ToolError):
            return False
    return probed.code == 1 and "PermissionError" in probed.error


def run_confined(code: str, folder: Path, limits: PythonLimits) -> Ran:
    """Run the code and return what it printed. Raises ToolError for a timeout and too much output."""
    with tempfile.TemporaryDirectory(prefix="tiny-llm-", ignore_cleanup_errors=True) as scratch:
        place = os.path.realpath(scratch)
        command = [sys.executable, "-I", "-B", str(SCRIPT), str(folder), place]
        command += [str(limits.seconds + 1), str(limits.megabytes)]
        if sys.platform == "darwin":
            command = ["/usr/bin/sandbox-exec", "-p", profile(folder, place), *command]
        environment = {"TMPDIR": place, "HOME": place, "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8:replace"}
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        ) as process:
            try:
                printed, error = communicate(process, code.encode(), limits)
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # also what the code may have started
        return Ran(printed.decode("utf-8", "replace"), error.decode("utf-8", "replace"), process.returncode)


def profile(root: Path, scratch: str) -> str:
    """Return the rules for macOS's `sandbox-exec`. A later rule comes before an earlier one."""
    home = os.path.expanduser("~")
    return PROFILE.format(root=root, scratch=scratch, home=home, prefix=sys.prefix, base=sys.base_prefix)


def communicate(process: "subprocess.Popen[bytes]", code: bytes, limits: PythonLimits) -> tuple[bytes, bytes]:
    """Send the code, and return what comes on stdout and stderr. Raises ToolError for too much time or output."""
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    end = time.monotonic() + limits.seconds
    found = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdin, selectors.EVENT_WRITE)
        for stream in (process.stdout, process.stderr):
            waiting.register(stream, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(max(0.0, end - time.monotonic()))
            if not ready:
                raise timeout(limits)
            for key, _ in ready:
                if key.fd in found:
                    more = receive(key.fd, found[key.fd])
                else:
                    more = code = send(key.fd, code)
                if not more:
                    waiting.unregister(key.fileobj)
                    close(key.fileobj)
            if sum(map(len, found.values())) > limits.output:
                raise ToolError(f"the code printed more than {limits.output:,} bytes: print less")
    try:
        process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise timeout(limits) from None
    printed, error = map(bytes, found.values())
    return printed, error


def timeout(limits: PythonLimits) -> ToolError:
    return ToolError(f"timeout after {limits.seconds} seconds")


def close(stream: Any) -> None:
    stream.close()


def receive(fd: int, found: bytearray) -> bytes:
    """Read what has come and add it to `found`. Nothing means the end."""
    data = os.read(fd, 65536)
    found += data
    return data


def send(fd: int, data: bytes) -> bytes:
    """Write some of the data and return the rest; nothing is left where the reader has gone."""
    try:
        return data[os.write(fd, data[:4096]) :]
    except BrokenPipeError:
        return b""
