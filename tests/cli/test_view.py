"""How an answer looks: where thinking ends, what a terminal is spared."""

from io import StringIO

import pytest

from tiny_llm.cli.session import AnswerView
from tiny_llm.decode.reply import AnswerPart, Content, Reasoning
from tiny_llm.views.units import size

PIECES: list[AnswerPart] = [Reasoning("hm "), Reasoning("so\n"), Content("yes"), Content("\x1b[31m!\r\n\tdone\x9b")]


class Screen(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, pieces: list[AnswerPart], out: StringIO) -> tuple[str, str]:
    err = StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    view = AnswerView()
    view.show(pieces[:1])
    view.show(pieces[1:])
    view.finish()
    return out.getvalue(), err.getvalue()


@pytest.fixture(autouse=True)
def colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_shows_thinking_dim_and_obeys_no_codes_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = shown(monkeypatch, PIECES, Screen())
    assert out == "\x1b[2mhm \x1b[0m\x1b[2mso\n\x1b[0m\nyes[31m!\n\tdone\n"
    assert err == ""


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_plain_terminal_shows_the_tags(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert shown(monkeypatch, PIECES[:3], Screen()) == ("<think>\nhm so\n</think>\nyes\n", "")


def test_a_pipe_gets_the_answer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, PIECES, StringIO()) == ("yes\x1b[31m!\r\n\tdone\x9b\n", "<think>\nhm so\n</think>\n")


def test_an_answer_without_thinking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, PIECES[2:3], Screen()) == ("yes\n", "")


def test_no_answer_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, [], Screen()) == ("", "")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_234_567, "1.23 MB"),
        (1_500_000_000, "1.5 GB"),
        (2e12, "2000.0 GB"),
    ],
)
def test_sizes(num_bytes: float, text: str) -> None:
    assert size(num_bytes) == text
