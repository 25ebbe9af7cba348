"""Make room in a full context: shorten old results first, then drop old turns."""

from collections.abc import Callable, Mapping
from typing import Any

from tiny_llm.apps.agent.nouns import ChatMessages

DROPPED = "(dropped to make room: {count} characters)"
SHORT = 120  # characters of a result that is not worth dropping


def compacted(
    messages: ChatMessages, count: Callable[[ChatMessages], int], room: int
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return messages of at most `room` tokens where that is possible, and a description of each part left out.

    `count` returns the tokens of messages. Results that the model has answered already are shortened from the oldest
    on, then turns before the last question are dropped. The system prompt, the last question and the newest results
    stay.
    """
    kept = list(messages)
    dropped: list[str] = []
    for place in old_results(kept):
        if count(kept) <= room:
            return kept, dropped
        text = kept[place]["content"]
        kept[place] = {**kept[place], "content": DROPPED.format(count=len(text))}
        dropped.append(f"a result of {len(text)} characters: {text[:60]!r}")
    while count(kept) > room:
        begin, end = first_turn(kept)
        if begin == end:
            break
        question = str(kept[begin]["content"])
        dropped.append(f"the turn that began with {question[:60]!r}")
        del kept[begin:end]
    return kept, dropped


def old_results(messages: ChatMessages) -> list[int]:
    """Return the places of the results in front of the model's last reply, oldest first, short ones left out."""
    replies = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    last = replies[-1] if replies else 0
    places = range(last)
    return [place for place in places if messages[place]["role"] == "tool" and len(messages[place]["content"]) > SHORT]


def first_turn(messages: ChatMessages) -> tuple[int, int]:
    """Return where the oldest turn begins and ends; an empty range where it is the only one."""
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    return (users[0], users[1]) if len(users) > 1 else (0, 0)
