"""The files that /save writes and /load reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_llm.apps.chat.conversation import Conversation
from tiny_llm.cli.conversation_file import load, save, write_atomically


def talk() -> Conversation:
    return Conversation("brief", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


def test_save_and_load(tmp_path: Path) -> None:
    conversation = talk()
    conversation.say("user", "ünï 🙂")
    conversation.say("assistant", "a", thinking="hm")
    path = tmp_path / "talk.json"
    save(conversation, path, "some model")
    assert load(path) == conversation
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "some model"
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_a_leading_system_message_is_the_system_prompt(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "a"}]}')
    assert load(path) == Conversation("brief", [{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "expected a conversation in JSON"),
        ("{", "expected a conversation in JSON"),
        (b"\xff\xff", "expected a conversation in JSON"),
        ("[" * 100_000, "expected a conversation in JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", "messages: expected a list, found None"),
        ({"messages": [3]}, r"messages\[0\]: expected a JSON object, found int"),
        ({"messages": [{"role": "robot", "content": ""}]}, r'messages\[0\]: role: .*"robot"'),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: content: expected a text, found None"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, r"messages\[1\]: role"),
        ({"messages": [], "system": 5}, "system: expected a text or null, found 5"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, content: Any, complaint: str) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(
        content
        if isinstance(content, bytes)
        else (content if isinstance(content, str) else json.dumps(content)).encode()
    )
    with pytest.raises(ValueError, match=f"talk.json: .*{complaint}|talk.json: {complaint}"):
        load(path)


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a conversation"):
        save(talk(), path, "m")
    assert path.read_text() == "mine"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    save(talk(), path, "m")
    before = path.read_text()
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="talk.json") as caught:
        save(talk(), tmp_path / "none" / "talk.json", "m")
    assert caught.value.filename == str(tmp_path / "none" / "talk.json")
