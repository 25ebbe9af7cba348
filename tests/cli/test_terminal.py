"""The chat at a real pseudo-terminal: typing, Ctrl-C in mid-answer, escape codes."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import without_eos
from tests.support import make_model

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\r\b]")
PROMPT = "\n>"


def at_a_terminal() -> None:
    """Make the terminal the session's own, and Ctrl-C count even where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.close(os.open(os.ttyname(0), os.O_RDWR))


class Terminal:
    """A program at a pseudo-terminal."""

    def __init__(self, arguments: list[str], **env: str):
        self.fd, theirs = pty.openpty()
        environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", **env}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tiny_llm", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=at_a_terminal,
        )
        os.close(theirs)
        self.raw = ""

    @property
    def text(self) -> str:
        return ESCAPE.sub("", self.raw)

    def read_until(self, wanted: str | Callable[[str], bool], timeout: float = 20) -> None:
        """Wait until the text, escape codes removed, holds `wanted`."""
        end = time.monotonic() + timeout
        while not (wanted in self.text if isinstance(wanted, str) else wanted(self.text)):
            assert time.monotonic() < end, f"{wanted!r} did not come; what came is {self.text!r}"
            self.read()

    def read_prompt(self) -> None:
        """Wait until the program takes keys one by one, behind a prompt: before that, Ctrl-C is another's."""
        self.read_until(lambda text: text.rstrip().endswith(">") and not termios.tcgetattr(self.fd)[3] & termios.ECHO)

    def read(self) -> bool:
        """Take what there is; False once the program has closed its end."""
        if not select.select([self.fd], [], [], 0.1)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux's way to say that the end is closed
            return False
        self.raw += data.decode("utf-8", "replace")
        return bool(data)

    def type(self, keys: str) -> None:
        self.raw = ""
        os.write(self.fd, keys.encode())

    def wait(self) -> int:
        """Exit code, after reading all that comes."""
        end = time.monotonic() + 20
        while self.read():
            assert time.monotonic() < end, f"no end; what came is {self.text!r}"
        return self.process.wait(20)


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=16384))


@pytest.fixture
def open_terminal() -> Iterator[Callable[..., Terminal]]:
    terminals: list[Terminal] = []

    def open_terminal(*arguments: str, **env: str) -> Terminal:
        terminals.append(Terminal(list(arguments), **env))
        return terminals[-1]

    yield open_terminal
    for terminal in terminals:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.fd)


def test_ctrl_c_stops_the_answer_and_not_the_chat(open_terminal: Callable[..., Terminal], long_model: str) -> None:
    chat = open_terminal("chat", "--model", long_model, *without_eos(Path(long_model)), "--max-tokens", "100000")
    chat.read_until(PROMPT)
    assert "long, context of 16384 tokens. /help lists the commands, /quit ends." in chat.text
    chat.type("hello\r")
    chat.read_until(lambda text: len(text) > 200)
    chat.type("\x03")
    chat.read_until("(stopped · ")
    chat.read_until(PROMPT)
    assert re.search(r"\(stopped · \d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s\)", chat.text)
    chat.type("/stats\r")
    chat.read_until("peak memory")
    chat.read_prompt()
    assert re.search(r"messages +2\n", chat.text), "question and partial answer are in the conversation"
    chat.type("\x03")
    chat.read_until("(/quit or Ctrl-D ends the chat)")
    chat.read_until(PROMPT)
    chat.type("/q\t")
    chat.read_until("/quit")
    chat.type("\r")
    assert chat.wait() == 0


def test_a_failure_does_not_end_the_chat(open_terminal: Callable[..., Terminal], long_model: str) -> None:
    chat = open_terminal("chat", "--model", long_model)
    chat.read_until(PROMPT)
    chat.type("/load nowhere.json\r")
    chat.read_until("error: nowhere.json: No such file or directory\n>")
    chat.type("/set temperature 0.2\r")
    chat.read_until("stop                ()  (default)\n>")
    chat.type("\x04")
    assert chat.wait() == 0


def test_the_line_of_figures_is_dim_and_plain_with_no_color(
    open_terminal: Callable[..., Terminal], long_model: str
) -> None:
    arguments = ("generate", "hi", "--model", long_model, "--max-tokens", "5", "--seed", "1")
    coloured, plain = open_terminal(*arguments, NO_COLOR=""), open_terminal(*arguments, NO_COLOR="1")
    assert coloured.wait() == plain.wait() == 0
    assert re.search(r"\x1b\[2m\d+ tokens · .*\x1b\[0m", coloured.raw)
    assert "\x1b" not in plain.raw
    assert re.search(r"\d+ tokens · .*first after", plain.raw)


def test_ctrl_c_ends_generate_with_130(open_terminal: Callable[..., Terminal], long_model: str) -> None:
    generate = open_terminal(
        "generate", "hi", "--model", long_model, *without_eos(Path(long_model)), "--max-tokens", "100000"
    )
    generate.read_until(lambda text: len(text) > 200)
    generate.type("\x03")
    assert generate.wait() == 130
    assert "Traceback" not in generate.text


@pytest.mark.parametrize(("no_color", "codes"), [("", True), ("1", False)])
def test_guesses_have_colours(no_color: str, codes: bool) -> None:
    """Accepted guesses are green, and the token after them cyan or yellow; where colours are unwanted nothing is."""
    terminal = Terminal(["chat", "--speculate", "draft", "--no-adaptive", "--temperature", "0"], NO_COLOR=no_color)
    terminal.read_prompt()
    terminal.type("/spec\r")
    terminal.read_until("colours of guesses: on")
    terminal.read_prompt()
    terminal.type("What is a KV cache?\r")
    terminal.read_until("tokens/s")
    assert ("\x1b[32m" in terminal.raw) == codes
    assert (re.search("\x1b\\[3[36]m", terminal.raw) is not None) == codes
    terminal.read_prompt()
    terminal.type("/quit\r")
    assert terminal.wait() == 0
