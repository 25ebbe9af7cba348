"""Dialogues and how they become tokens: everything goes through the chat template that chat and server use."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

JsonObject = dict[str, Any]
TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
STOP = "<|im_end|>"


@dataclass(frozen=True)
class Dialogue:
    """A conversation; each turn of the assistant is something to learn.

    `thinking` False: the turns are learned only as answers to prompts with an empty think block. True: the think block,
    which is empty unless the message has `reasoning_content`, is learned as well.
    """

    task: str
    messages: tuple[JsonObject, ...]
    tools: tuple[JsonObject, ...] = ()
    thinking: bool = True


@dataclass(frozen=True)
class Turn:
    """One thing that the model says: the text before it and the text of it, up to and including the stop token."""

    task: str
    prompt: str
    completion: str


def to_json(value: Any) -> str:
    """JSON as the template writes it: one line, characters as they are."""
    return json.dumps(value, ensure_ascii=False)


def user(text: str) -> JsonObject:
    return {"role": "user", "content": text}


def assistant(text: str, thought: str = "") -> JsonObject:
    return {"role": "assistant", "content": text} | ({"reasoning_content": thought} if thought else {})


def call(name: str, arguments: JsonObject) -> JsonObject:
    """An assistant's turn that is one tool call."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def tool_result(text: str) -> JsonObject:
    return {"role": "tool", "content": text}


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = to_json
    return environment.from_string(TEMPLATE)


def render(messages: Sequence[JsonObject], tools: Sequence[JsonObject] = (), **options: Any) -> str:
    """The conversation as text, by the chat template."""
    return _template().render(messages=list(messages), tools=list(tools), **options)


def turns(dialogue: Dialogue) -> Iterator[Turn]:
    """Each assistant's turn with exactly the prompt that a user of the model would send before it."""
    for index, message in enumerate(dialogue.messages):
        if message["role"] != "assistant":
            continue
        prompt = render(
            dialogue.messages[:index],
            dialogue.tools,
            add_generation_prompt=True,
            enable_thinking=dialogue.thinking,
        )
        text = render(dialogue.messages[: index + 1], dialogue.tools)
        assert text.startswith(prompt), f"the template does not continue its own prompt: {text!r}"
        yield Turn(dialogue.task, prompt, text[len(prompt) :].removesuffix("\n"))


def encode_turns(dialogue: Dialogue, encode: Callable[[str], list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each turn's prompt and completion, encoded apart as they are when the model generates."""
    for turn in turns(dialogue):
        yield encode(turn.prompt), encode(turn.completion)
