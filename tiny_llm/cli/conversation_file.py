"""The file of a conversation: /save writes it, /load reads it."""

import os
import tempfile
from pathlib import Path

from tiny_llm.apps.chat.conversation import EXPECTED, Conversation
from tiny_llm.cli.inputs import read_file


def save(conversation: Conversation, path: Path, model: str) -> None:
    """Write to `path`, all or nothing. Raises ValueError for a file that is there and is not a conversation."""
    if path.exists():
        try:
            load(path)
        except ValueError:
            raise ValueError(f"{path}: exists and is not a conversation; choose another name") from None
    write_atomically(path, conversation.as_text(model))


def load(path: Path) -> Conversation:
    """Read what `save` wrote. Raises ValueError with file and key, OSError if there is no such file."""
    try:
        text = read_file(path)
    except ValueError as error:
        raise ValueError(f"{path}: {EXPECTED}: {error}") from None
    return Conversation.parse(text, str(path))


def write_atomically(path: Path, text: str) -> None:
    """Replace the file at `path` in one step, so that a failure leaves what was there."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
