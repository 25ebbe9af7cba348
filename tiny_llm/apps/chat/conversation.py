"""A conversation: the messages, the newest of them that fit the model's context, and its form as a text."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tiny_llm.config.fields import JsonFields, require

FORMAT = "tiny-llm conversation"
EXPECTED = "expected a conversation in JSON, as /save writes it"
ROLES = ("user", "assistant")
ChatMessage = dict[str, str]
CountTokens = Callable[[list[ChatMessage]], int]
CHARACTERS = 8  # of a token at most, in nearly all texts


@dataclass
class Conversation:
    """Messages in the order they were said. Those before `start` no longer go to the model."""

    system: str | None = None
    messages: list[ChatMessage] = field(default_factory=list)
    start: int = 0

    def say(self, role: str, content: str, thinking: str = "") -> None:
        message = {"role": role, "content": content}
        self.messages.append(message | ({"reasoning_content": thinking} if thinking else {}))

    def visible(self, start: int | None = None) -> list[ChatMessage]:
        """What the model is shown: the system prompt and the messages that fit, or those from `start` on."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages[self.start if start is None else start :]

    def unanswer(self) -> None:
        """Take back what follows the last user message. Raises ValueError if there is no such message."""
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        require(bool(users), "nothing has been asked yet")
        del self.messages[users[-1] + 1 :]

    def fit(self, count_tokens: CountTokens, context: int, reserve: int) -> int:
        """Leave out the oldest turns until `reserve` tokens of the context are free; returns how many messages.

        Leaves out enough for half the context to be free then, so that the next turns find their prefix in the cache.
        Raises ValueError if the last message alone does not fit.
        """
        turns = Turns(self, count_tokens)
        if turns.all_fit(context - reserve):
            return 0
        kept = turns.most_that_fit(context // 2 - reserve)
        tokens = turns.tokens(kept)
        if tokens >= context:
            raise ValueError(
                f"this message and the system prompt are {tokens} tokens, and the context holds {context}; "
                "shorten them, or start with a larger --max-context if the model allows one"
            )
        before, self.start = self.start, turns.begin(kept)
        return self.start - before

    def as_text(self, model: str) -> str:
        """Return the conversation with a model as a text in JSON that `parse` reads."""
        data = {"format": FORMAT, "model": model, "system": self.system, "messages": self.messages}
        return json.dumps(data, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str, source: str) -> "Conversation":
        """Read what `as_text` wrote. Raises ValueError with `source` and the key that is wrong."""
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{source}: {EXPECTED}: {error}") from None
        data = JsonFields(parsed, source)
        messages, system = data.data.get("messages"), data.data.get("system")
        if not isinstance(messages, list):
            raise ValueError(f"{source}: messages: expected a list, found {messages!r:.80}")
        require(
            system is None or isinstance(system, str),
            f"{source}: system: expected a text or null, found {system!r:.80}",
        )
        read = [_message(item, f"{source}: messages[{i}]") for i, item in enumerate(messages)]
        if read and read[0]["role"] == "system":
            system = system or read[0]["content"]
            del read[0]
        return cls(system, read)


class Turns:
    """Count tokens of the newest turns.

    A turn begins with a message of the user; the messages before the first of these belong to the oldest turn. A count
    takes time proportional to the text, so counts are cached and the search doubles from the newest turn.
    """

    def __init__(self, conversation: Conversation, count_tokens: CountTokens):
        self._conversation, self._count_tokens = conversation, count_tokens
        self._counted: dict[int, int] = {}
        start, messages = conversation.start, conversation.messages
        later = [i for i in range(start + 1, len(messages)) if messages[i]["role"] == "user"]
        self._starts = [start, *later]

    def begin(self, turns: int) -> int:
        """The index of the first message of the last `turns` turns."""
        return self._starts[-turns]

    def tokens(self, turns: int) -> int:
        """What the last `turns` turns and the system prompt take."""
        if turns not in self._counted:
            self._counted[turns] = self._count_tokens(self._conversation.visible(self.begin(turns)))
        return self._counted[turns]

    def all_fit(self, room: int) -> bool:
        """Whether all turns take at most `room` tokens. More turns take more tokens."""
        whole, turns = len(self._starts), 1
        length = sum(len(message["content"]) for message in self._conversation.visible())
        while length > room * CHARACTERS and turns < whole:  # a long text: some of its turns may be enough to know
            if self.tokens(turns) > room:
                return False
            turns *= 2
        return self.tokens(whole) <= room

    def most_that_fit(self, room: int) -> int:
        """The most turns that take at most `room` tokens, but not all of them; at least the last one."""
        if self.tokens(1) > room:
            return 1
        fit, more = 1, 2  # `fit` turns do, `more` may not
        while more < len(self._starts) and self.tokens(more) <= room:
            fit, more = more, 2 * more
        more = min(more, len(self._starts))
        while more - fit > 1:
            middle = (fit + more) // 2
            if self.tokens(middle) <= room:
                fit = middle
            else:
                more = middle
        return fit


def _message(item: Any, source: str) -> ChatMessage:
    fields = JsonFields(item, source)
    message = {"role": fields.choice("role", ROLES + (("system",) if source.endswith("[0]") else ()))}
    for key in ("content", "reasoning_content"):
        value = fields.data.get(key)
        if key == "content" or value is not None:
            require(isinstance(value, str), f"{source}: {key}: expected a text, found {value!r:.80}")
            message[key] = value
    return message
