"""Conversations: what fits the context."""

import random
from typing import Any

import pytest

from tiny_llm.apps.chat.conversation import Conversation


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
