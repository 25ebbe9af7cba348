"""The line editor of the chat: history across sessions, several lines, completion of commands."""

import os
from collections.abc import Sequence
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.output.defaults import create_output

from tiny_llm.cli.process import state_dir
from tiny_llm.cli.terminal import note


def open_history() -> History:
    """What was typed in earlier chats, readable to the user alone; where that can't be written, only this chat's."""
    path = state_dir() / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        note(f"no history: {path}: {error.strerror}")
        return InMemoryHistory()
    return FileHistory(path)


def key_bindings() -> KeyBindings:
    """Enter sends; Alt-Enter, or Enter after a backslash, starts a new line. Pasted lines stay together."""
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def newline(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter")
    def send(event: Any) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    return keys


def make_editor(commands: Sequence[str]) -> PromptSession[str]:
    """A session whose `prompt("> ")` returns what was typed; Ctrl-C raises KeyboardInterrupt, Ctrl-D EOFError."""
    return PromptSession(
        history=open_history(),
        multiline=True,
        key_bindings=key_bindings(),
        prompt_continuation="… ",
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        output=create_output(always_prefer_tty=True),
    )
