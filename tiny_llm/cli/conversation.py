"""A conversation: what was said, what of it still fits the model's context, and its file."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_llm.config.fields import JsonFields, require

FORMAT = "tiny-llm conversation"
ROLES = ("user", "assistant")
Message = dict[str, str]


@dataclass
class Conversation:
    """Messages in the order they were said. Those before `start` no longer go to the model."""

    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    start: int = 0

    def say(self, role: str, content: str, thinking: str = "") -> None:
        message = {"role": role, "content": content}
        self.messages.append(message | ({"reasoning_content": thinking} if thinking else {}))

    def visible(self) -> list[Message]:
        """What the model is shown: the system prompt and the messages that fit."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + self.messages[self.start :]

    def unanswer(self) -> None:
        """Take back what follows the last user message. Raises ValueError if there is no such message."""
        users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        require(bool(users), "nothing has been asked yet")
        del self.messages[users[-1] + 1 :]

    def fit(self, count_tokens: Callable[[list[Message]], int], context: int, reserve: int) -> int:
        """Leave out the oldest turns until `reserve` tokens of the context are free; returns how many messages.

        Leaves out enough for half the context to be free then, so that the next turns find their prefix in the cache.
        Raises ValueError if the last message alone does not fit.
        """
        before, tokens = self.start, count_tokens(self.visible())
        if tokens + reserve <= context:
            return 0
        last_user = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=0)
        while tokens + reserve > context // 2 and self.start < last_user:
            self.start += 1
            if self.messages[self.start]["role"] == "user":
                tokens = count_tokens(self.visible())
        if tokens >= context:
            self.start = before
            raise ValueError(
                f"this message and the system prompt are {tokens} tokens, and the context holds {context}; "
                "shorten them, or start with a larger --max-context if the model allows one"
            )
        return self.start - before

    def save(self, path: Path, model: str) -> None:
        """Write to `path`, all or nothing. Refuses to replace a file that is not a conversation."""
        if path.exists():
            try:
                Conversation.load(path)
            except ValueError:
                raise ValueError(f"{path}: exists and is not a conversation; choose another name") from None
        text = json.dumps(
            {"format": FORMAT, "model": model, "system": self.system, "messages": self.messages},
            indent=1,
            ensure_ascii=False,
        )
        write_atomically(path, text + "\n")

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """Read what `save` wrote. Raises ValueError naming file and key, OSError if there is no such file."""
        try:
            data = JsonFields(json.loads(path.read_text(encoding="utf-8")), str(path))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{path}: expected a conversation in JSON, as /save writes it: {error}") from None
        messages, system = data.data.get("messages"), data.data.get("system")
        if not isinstance(messages, list):
            raise ValueError(f"{path}: messages: expected a list, found {messages!r:.80}")
        require(
            system is None or isinstance(system, str), f"{path}: system: expected a text or null, found {system!r:.80}"
        )
        read = [_message(item, f"{path}: messages[{i}]") for i, item in enumerate(messages)]
        if read and read[0]["role"] == "system":
            system = system or read[0]["content"]
            del read[0]
        return cls(system, read)


def _message(item: Any, source: str) -> Message:
    fields = JsonFields(item, source)
    message = {"role": fields.choice("role", ROLES + (("system",) if source.endswith("[0]") else ()))}
    for key in ("content", "reasoning_content"):
        value = fields.data.get(key)
        if key == "content" or value is not None:
            require(isinstance(value, str), f"{source}: {key}: expected a text, found {value!r:.80}")
            message[key] = value
    return message


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
