"""Conversations: what fits the context, and their files."""

import json
import random
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


def plain_fit(conversation: Conversation, count: Any, context: int, reserve: int) -> int:
    """The rule in its plainest form: leave out one turn after the other and count all again."""
    start, tokens = conversation.start, count(conversation.visible())
    if tokens + reserve <= context:
        return start
    users = [i for i, message in enumerate(conversation.messages) if message["role"] == "user"]
    while tokens + reserve > context // 2 and start < max(users, default=0):
        start = next(i for i in users if i > start)
        tokens = count(conversation.visible(start))
    if tokens >= context:
        raise ValueError(tokens)
    return start


def random_talk(draw: random.Random) -> Conversation:
    """Any number of turns, some huge; answers may be missing, and it may begin with one."""
    conversation = Conversation("s" * draw.choice([0, 5, 400]))
    sizes = draw.choice([[10], [1, 10, 100], [1, 10, 4000]])
    for _ in range(draw.randrange(40)):
        role = draw.choice(["user", "user", "assistant"])
        conversation.say(role, "x" * draw.choice(sizes))
    conversation.start = draw.choice([0, draw.randrange(len(conversation.messages) + 1)])
    conversation.say("user", "?" * draw.choice(sizes))
    return conversation


@pytest.mark.parametrize("seed", range(300))
def test_as_much_is_kept_as_by_leaving_out_one_turn_after_the_other(seed: int) -> None:
    draw = random.Random(seed)
    conversation, context = random_talk(draw), draw.choice([1, 30, 200, 1000, 5000])
    reserve, per_token = draw.choice([0, context // 4]), draw.choice([1, 4, 40])
    before = conversation.start

    def count(messages: list[dict[str, str]]) -> int:
        return characters(messages) // per_token + 3 * len(messages)

    try:
        wanted = plain_fit(conversation, count, context, reserve)
    except ValueError as error:
        with pytest.raises(ValueError, match=f"are {error} tokens, and the context holds {context}"):
            conversation.fit(count, context, reserve)
        assert conversation.start == before
        return
    assert conversation.fit(count, context, reserve) == wanted - before
    assert conversation.start == wanted


class Counter:
    """Counts characters as tokens, and how many it had to look at in all."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, messages: list[dict[str, str]]) -> int:
        self.seen += characters(messages)
        return characters(messages)


@pytest.mark.parametrize("turns", [10, 100, 1000, 5000])
def test_the_work_grows_with_the_length_of_the_conversation(turns: int) -> None:
    """Each turn that was left out had all the rest counted again: `/load` of 1,600 messages took minutes."""
    conversation, counter = talk(turns, 3), Counter()
    conversation.say("user", "?")
    conversation.fit(counter, context=100, reserve=20)
    assert counter.seen <= 3 * characters(conversation.messages) + 1000


def test_a_full_context_costs_each_turn_no_more_than_the_context() -> None:
    conversation, context = talk(500), 1000
    for _ in range(100):
        conversation.say("user", "?" * 10)
        counter = Counter()
        conversation.fit(counter, context, reserve=100)
        assert counter.seen <= 12 * context
        conversation.say("assistant", "!" * 10)


def test_a_huge_message_among_small_ones_is_left_out_alone() -> None:
    conversation = Conversation()
    for content in ("a", "b" * 1000, "c", "d"):
        conversation.say("user", content)
    assert conversation.fit(characters, context=100, reserve=10) == 2
    assert [message["content"] for message in conversation.visible()] == ["c", "d"]
