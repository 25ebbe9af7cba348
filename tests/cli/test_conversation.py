"""Conversations: what fits the context, and their files."""

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_llm.cli.conversation import Conversation, write_atomically


def talk(turns: int, length: int = 10) -> Conversation:
    conversation = Conversation("s" * length)
    for turn in range(turns):
        conversation.say("user", str(turn) * length)
        conversation.say("assistant", str(turn) * length)
    return conversation


def characters(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)


def test_all_is_visible_while_it_fits() -> None:
    conversation = talk(3)
    assert conversation.fit(characters, context=80, reserve=10) == 0
    assert conversation.visible() == [{"role": "system", "content": "s" * 10}, *conversation.messages]


def test_the_oldest_turns_leave_until_half_is_free() -> None:
    conversation = talk(9)
    conversation.say("user", "?" * 10)
    assert conversation.fit(characters, context=200, reserve=10) == 12
    kept = [message["content"][0] for message in conversation.visible()]
    assert kept == ["s", "6", "6", "7", "7", "8", "8", "?"]
    assert len(conversation.messages) == 19, "what the model no longer sees is still in the conversation"
    assert conversation.fit(characters, context=200, reserve=10) == 0


def test_a_message_too_long_by_itself_is_refused() -> None:
    conversation = talk(2)
    conversation.say("user", "?" * 100)
    with pytest.raises(ValueError, match="are 110 tokens, and the context holds 100"):
        conversation.fit(characters, context=100, reserve=10)
    assert conversation.start == 0


def test_save_and_load(tmp_path: Path) -> None:
    conversation = talk(1)
    conversation.say("user", "ünï 🙂")
    conversation.say("assistant", "a", thinking="hm")
    path = tmp_path / "talk.json"
    conversation.save(path, "some model")
    assert Conversation.load(path) == conversation
    assert json.loads(path.read_text(encoding="utf-8"))["model"] == "some model"
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_a_leading_system_message_is_the_system_prompt(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "system", "content": "brief"}, {"role": "user", "content": "a"}]}')
    assert Conversation.load(path) == Conversation("brief", [{"role": "user", "content": "a"}])


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
        ({"messages": [{"role": "robot", "content": ""}]}, r"messages\[0\]: role: .*'robot'"),
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
        Conversation.load(path)


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a conversation"):
        talk(1).save(path, "m")
    assert path.read_text() == "mine"


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk(1).save(path, "m")
    before = path.read_text()
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["talk.json"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="talk.json") as caught:
        talk(1).save(tmp_path / "none" / "talk.json", "m")
    assert caught.value.filename == str(tmp_path / "none" / "talk.json")
