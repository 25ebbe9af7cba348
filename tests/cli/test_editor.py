"""The line editor, driven by what a keyboard sends."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tiny_llm.cli import editor

Type = Callable[[str], str]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Type]:
    """What the editor returns for the keys of one line."""
    monkeypatch.setattr(editor, "create_output", lambda **_: DummyOutput())
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):

        def typed(text: str) -> str:
            keys.send_text(text)
            return editor.make_editor(["/help", "/quit"]).prompt("> ")

        yield typed


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("hello\r", "hello"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("a\\b\r", "a\\b"),
        ("\x1b[200~one\r\ntwo\nthree\x1b[201~\r", "one\ntwo\nthree"),
        ("héllo 🙂\r", "héllo 🙂"),
    ],
    ids=["enter sends", "alt-enter", "backslash", "backslash inside", "paste", "unicode"],
)
def test_keys(typed: Type, keys: str, text: str) -> None:
    assert typed(keys) == text


@pytest.mark.parametrize(("key", "error"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_ctrl_c_and_ctrl_d(typed: Type, key: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        typed(key)


def test_history_is_kept_for_the_next_session_and_for_nobody_else(typed: Type, tmp_path: Path) -> None:
    assert typed("first line\r") == "first line"
    assert typed("\x1b[A\r") == "first line", "arrow up in a new session"
    file = tmp_path / "state" / "tiny-llm" / "chat_history"
    assert "first line" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_state_folder_that_cannot_be_written(typed: Type, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    assert typed("still works\r") == "still works"
