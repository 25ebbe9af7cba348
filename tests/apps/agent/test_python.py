"""Code of a model runs confined."""

import os
import sys
import time
from pathlib import Path

import pytest

from tiny_llm.apps.agent.python import PythonLimits, can_confine, run_python
from tiny_llm.apps.agent.tools import ToolError

pytestmark = pytest.mark.skipif(not can_confine(), reason="this system can't confine a process")


def fails(code: str, folder: Path, limits: PythonLimits | None = None) -> str:
    with pytest.raises(ToolError) as raised:
        run_python(code, folder, limits)
    return str(raised.value)


def test_it_prints(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert run_python("print(2 + 2); print(open('a.txt').read())", tmp_path) == "4\nhello\n"
    assert run_python("import tempfile; tempfile.TemporaryFile().write(b'x'); print('ok')", tmp_path) == "ok\n"
    assert run_python("import sys; sys.stdout.buffer.write(b'\\xff')", tmp_path) == "�"


def test_errors_are_one_line(tmp_path: Path) -> None:
    assert fails("1/0", tmp_path) == "ZeroDivisionError: division by zero"
    assert fails("x = = 1", tmp_path) == "SyntaxError: invalid syntax"
    assert fails("print(1)\nraise SystemExit(3)", tmp_path) == "SystemExit: 3\nprinted before: 1\n"
    assert "surrogate" in fails("print('\ud800')", tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        "open('new.txt', 'w')",
        "import os; os.remove('a.txt')",
        "import os; os.chmod('a.txt', 0)",
        "import os; os.utime('a.txt', (0, 0))",
        "import shutil, os; shutil.rmtree(os.getcwd())",
        "import os; os.fork()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "import socket; socket.socket()",
        "open('/etc/passwd').read()",
        "import os; os.listdir('/')",
        "import os; os.symlink('/etc', 'link')",
        "import os; open(f'/proc/{os.getppid()}/environ').read()",
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="macOS confines by another list")
def test_nothing_outside_is_touched(tmp_path: Path, code: str) -> None:
    (tmp_path / "a.txt").write_text("hello")
    before = (tmp_path / "a.txt").stat()
    assert "Error: [Errno" in fails(code, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").stat().st_mtime == before.st_mtime


def test_time_is_bounded_and_nothing_is_left_running(tmp_path: Path) -> None:
    limits = PythonLimits(seconds=2)
    begin = time.monotonic()
    message = fails("import os\nprint(os.getpid(), flush=True)\nwhile True: pass", tmp_path, limits)
    assert message == "timeout after 2 seconds"
    assert time.monotonic() - begin < 20
    assert fails("import os, time\nos.close(1); os.close(2)\ntime.sleep(60)", tmp_path, limits) == message
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        names = [Path(f"/proc/{child}/cmdline").read_text() for child in children.read_text().split()]
        assert not [name for name in names if "confine.py" in name]


def test_memory_and_output_are_bounded(tmp_path: Path) -> None:
    assert fails("x = 'a' * 10**11", tmp_path) == "MemoryError"
    assert "printed more than" in fails("print('x' * 10**8)", tmp_path)
    assert "printed more than" in fails("while True: print('x' * 1000)", tmp_path)
