"""A command as a process: streams that are closed, full, broken, endless or no text, and signals at any time."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from tests.cli.conftest import Run, without_eos
from tests.cli.fake import FakeLLM
from tiny_llm.cli import inputs

SCRIPT = [str(Path(sys.executable).with_name("tiny-llm"))]
MODULE = [sys.executable, "-m", "tiny_llm"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONUNBUFFERED", "PYTHONIOENCODING")}
SHORT = "--max-tokens 2 --temperature 0"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of the shell in which `tiny-llm` is this program."""
    line = f'tiny-llm() {{ "{sys.executable}" -m tiny_llm "$@"; }}\n{command}'
    env = {**ENVIRONMENT, **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=180, errors="replace")


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        ("generate <&-", 1, "error: stdin: is closed, and there is nothing to read"),
        ("models list >&-", 1, "error: stdout is closed, and there is no place for the output"),
        ("--version >&-", 1, "error: stdout is closed, and there is no place for the output"),
        ("models list >/dev/full", 1, "error: stdout: No space left on device"),
        ("--help >/dev/full", 1, "error: stdout: No space left on device"),
        ("viz mask --keys 2 --queries 2 -o {folder}/m.html >/dev/full", 1, "error: stdout: No space left on device"),
    ],
)
def test_a_stream_that_is_closed_or_full_is_told_in_one_line(
    tmp_path: Path, command: str, code: int, told: str
) -> None:
    """Closed streams raised AttributeError, and a full one a second error at the end and exit code 120."""
    result = shell("tiny-llm " + command.format(folder=tmp_path))
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith(told) and result.stderr.count("\n") == 1


@pytest.mark.parametrize("place", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_without_a_place_for_remarks_the_answer_still_comes(place: str) -> None:
    result = shell(f"tiny-llm --version {place}; tiny-llm models lst {place}; echo $?")
    assert result.stdout.startswith("tiny-llm ") and result.stdout.endswith("\n2\n")


def test_closed_descriptors_are_not_taken_by_files(model_dir: Path) -> None:
    """A file opened as number 2 would get what libraries print."""
    result = shell(f"tiny-llm generate hi --json --model {model_dir} {SHORT} <&- 2>&-")
    assert result.returncode == 0
    assert json.loads(result.stdout)["model"] == "random-qwen3"


def test_a_full_disk_ends_a_chat_in_one_line(model_dir: Path) -> None:
    """Each message got an answer that could not be written, and a line of its own."""
    result = shell(f"printf 'a\\nb\\nc\\n' | tiny-llm chat --model {model_dir} {SHORT} >/dev/full")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "stdout: No space left on device" in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_gets_what_it_can_show(model_dir: Path, encoding: str) -> None:
    lines = "/system ü漢🙂\\n/stats\\n"
    result = shell(
        f"printf '{lines}' | tiny-llm chat --model {model_dir} {SHORT} | xxd -p -c 99", PYTHONIOENCODING=encoding
    )
    shown = bytes.fromhex(result.stdout.replace("\n", "")).decode(encoding)
    assert result.stderr == ""
    assert shown.splitlines()[0] == "system prompt: " + "ü漢🙂".encode(encoding, "backslashreplace").decode(encoding)


def test_json_is_json_in_any_encoding(model_dir: Path) -> None:
    """An escape such as \\xe9 in the place of a character would be no JSON."""
    options = f"--model {model_dir} --max-tokens 60 --seed 3 --temperature 5 --json --ignore-eos"
    texts = []
    for encoding in ("ascii", "utf-8"):
        result = shell(f"tiny-llm generate é {options}", PYTHONIOENCODING=encoding)
        texts.append(json.loads(result.stdout)["completions"][0]["text"])
    assert texts[0] == texts[1]
    assert not texts[0].isascii()


def test_an_argument_is_utf_8_in_any_locale(model_dir: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    answers = [shell(f"tiny-llm generate é --json --model {model_dir} {SHORT}", **env) for env in ({}, plain)]
    assert [answer.returncode for answer in answers] == [0, 0]
    first, second = (json.loads(answer.stdout)["completions"] for answer in answers)
    assert first == second


def test_bytes_that_are_no_text_cost_their_line_alone(run: Run) -> None:
    llm = FakeLLM("x", "y")
    result = run("chat", stdin=b"one\ntw\xffo\nthree\n", llm=llm)
    assert (result.code, result.out) == (1, "x\ny\n")
    assert result.err == "error: line 2: expected UTF-8 text, found the byte 0xff as character 3\n"
    assert llm.asked[1][-1]["content"] == "three"


def test_a_byte_order_mark_nul_bytes_and_other_line_ends(run: Run) -> None:
    llm = FakeLLM("x", "y", "z")
    result = run("chat", stdin=b"\xef\xbb\xbfone\r\nt\0wo\r\nthree", llm=llm)
    assert (result.code, result.err) == (0, "")
    assert [messages[-1]["content"] for messages in llm.asked] == ["one", "t\0wo", "three"]


def test_a_prompt_from_a_file_and_from_stdin_is_the_same(run: Run, tmp_path: Path) -> None:
    data = b"\xef\xbb\xbfone\r\ntwo\r\n"
    (tmp_path / "prompt").write_bytes(data)
    llm = FakeLLM("x", "y")
    run("generate", stdin=data, llm=llm)
    run("generate", "--file", str(tmp_path / "prompt"), llm=llm)
    assert [messages[0]["content"] for messages in llm.asked] == ["one\ntwo"] * 2


@pytest.mark.parametrize("command", ["generate <{file}", "generate --file {file}", "chat <{file}"])
def test_a_text_without_end_is_refused(model_dir: Path, command: str) -> None:
    result = shell(f"ulimit -v 8000000; tiny-llm {command.format(file='/dev/zero')} --model {model_dir}")
    assert result.returncode in (1, 2)
    assert "expected at most 16,777,216 characters, found more" in result.stderr and result.stderr.count("\n") == 1


def test_a_message_without_end_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("tiny_llm.cli.chat"), "LARGEST", 100)
    result = run("chat", stdin="part \\\n" * 50, llm=FakeLLM())
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "line 17: expected a message of at most 100 characters" in result.err


def test_a_long_line_is_read(run: Run) -> None:
    llm = FakeLLM("x", max_context=10**8)
    assert run("chat", stdin="long " * 2_000_000, llm=llm).code == 0
    assert len(llm.asked[0][0]["content"]) == 10_000_000


@pytest.mark.parametrize("option", ["--system", "--stop", "--structured=regex", "prompt"])
def test_an_argument_that_is_no_text_is_refused_by_name(run: Run, option: str) -> None:
    words = ["a\udcffb"] if option == "prompt" else ["hi", f"{option}=a\udcffb"]
    result = run("generate", *words, llm=FakeLLM("x"))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert option.strip("-").partition("=")[0] in result.err
    assert "expected UTF-8 text, found the byte 0xff as character 2" in result.err


@pytest.mark.parametrize("command", ["generate hi --model {}", "quantize {} -o x", "quantize pocket -o {}"])
def test_a_model_of_a_name_that_is_no_text(run: Run, tmp_path: Path, command: str) -> None:
    """MLX opens files of UTF-8 names alone, and its error named an encoder."""
    folder = tmp_path / "m\udcff"
    folder.mkdir()
    result = run(*command.format(folder).split())
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "expected UTF-8 text, found the byte 0xff" in result.err


def test_places_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    assert run("generate", "--file", str(tmp_path)).err == f"error: {tmp_path}: Is a directory\n"
    assert run("chat", stdin=f"/load {tmp_path}/a\0b\n", llm=FakeLLM()).err.startswith(
        "error: /load: expected the name"
    )
    result = run("chat", stdin="/load ~nobody-of-that-name/x\n", llm=FakeLLM())
    assert result.err == "error: ~nobody-of-that-name/x: No such file or directory\n"


def test_what_a_terminal_would_obey_is_escaped_in_errors(run: Run) -> None:
    result = run("chat", stdin="/load no\x1b[31mthing\n", llm=FakeLLM())
    assert result.err == "error: no\\x1b[31mthing: No such file or directory\n"


def test_the_place_of_a_surrogate_is_told() -> None:
    with pytest.raises(ValueError, match="word: expected UTF-8 text, found half of a surrogate pair as character 3"):
        inputs.text_of("ab\ud800", "word")


def test_without_a_home_or_a_folder_for_temporary_files(model_dir: Path) -> None:
    answer = f"tiny-llm generate hi --model {model_dir} {SHORT}"
    line = f"{answer} && cd /proc && {answer}"
    assert shell(line, TMPDIR="/nonexistent", HOME="/nonexistent").returncode == 0
    assert shell(f"unset HOME; {line}").returncode == 0


def test_a_folder_that_cannot_be_written_is_named() -> None:
    result = shell("cd /proc; tiny-llm viz mask")
    assert (result.returncode, result.stderr) == (1, "error: mask.html: No such file or directory\n")


def interruptible() -> None:
    """Ctrl-C counts even where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def started(*command: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT, preexec_fn=interruptible
    )


@pytest.mark.parametrize("program", [SCRIPT, MODULE], ids=["script", "module"])
@pytest.mark.parametrize("module", ["tiny_llm._blas", "typer", "tiny_llm.cli.generate", "mlx.core", "jinja2"])
def test_ctrl_c_during_imports_ends_quietly(program: list[str], module: str, tmp_path: Path) -> None:
    """KeyboardInterrupt came out of an import as a traceback, or was lost in it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Press:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Press())\n"
    )
    process = subprocess.run(
        [*program, "generate", "hi", "--max-tokens", "2"],
        capture_output=True,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path)},
        preexec_fn=interruptible,
        timeout=60,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, b"", b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_input_is_awaited(model_dir: Path, number: int, code: int) -> None:
    process = started(*MODULE, "chat", "--model", str(model_dir), "--max-tokens", "2")
    assert process.stdin and process.stdout
    process.stdin.write("hi\n")
    process.stdin.flush()
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err and "unexpected" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_mid_answer(model_dir: Path, number: int, code: int) -> None:
    options = ["--model", str(model_dir), "--max-tokens", "400", "--max-context", "512", *without_eos(model_dir)]
    slowly = ("--ops", "plain")
    process = started(*MODULE, "generate", "hi", *options, *slowly)
    assert process.stdout
    process.stdout.read(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err and "unexpected" not in err


def test_a_signal_that_is_ignored_stays_so() -> None:
    line = f"trap '' INT; {sys.executable} -m tiny_llm doctor >/dev/null & sleep 0.6; kill -INT $!; wait $!; echo $?"
    assert shell(line).stdout == "0\n"


def test_a_program_that_imports_the_package_keeps_its_own_handling() -> None:
    code = "import signal, tiny_llm; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=interruptible)
    assert done.stdout == "True\n"
