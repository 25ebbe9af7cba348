"""Watch mode at a real terminal: a save is tested within two seconds, and keys are heard."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

from tests.course.conftest import ROOT, Solve


def until(terminal: int, words: str, seconds: float = 30) -> str:
    """What the program wrote until `words` appeared."""
    text, end = "", time.monotonic() + seconds
    while words not in text:
        assert time.monotonic() < end, f"no {words!r} within {seconds} s in {text!r}"
        if select.select([terminal], [], [], 0.1)[0]:
            text += os.read(terminal, 4096).decode()
    return text


def test_a_save_is_tested_within_two_seconds(checkout: Path, solve: Solve) -> None:
    terminal, other = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tiny_llm", "course", "watch"]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
    try:
        assert "to do   w1.1.1" in until(terminal, "q quit")
        begin = time.monotonic()
        solve("w1.1.1")
        until(terminal, "passed  w1.1.1")
        assert time.monotonic() - begin < 2
        os.write(terminal, b"h")
        until(terminal, "w1.1.2 hint 1 of 3")
        os.write(terminal, b"d")
        until(terminal, "w1.1.2 is not passed")
        os.write(terminal, b"l")
        until(terminal, "Week 1")
        os.write(terminal, b"n")
        until(terminal, "write     scaled_dot_product_attention")
        os.write(terminal, b"q")
        assert process.wait(10) == 0
    finally:
        process.kill()
        os.close(terminal)
        os.close(other)
