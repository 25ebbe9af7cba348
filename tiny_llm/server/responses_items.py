"""The items of the Responses API: what a conversation is made of, sent by the client or made by this server."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from tiny_llm.apps.agent.hosted import SEARCH
from tiny_llm.config.prompts import Passage, builtin_tools, passage_format
from tiny_llm.server.one_of import one_of
from tiny_llm.server.types import ApiModel

ItemStatus = Literal["in_progress", "completed", "incomplete"]
INPUT = "input"  # the parameter of a custom tool, whose input is one text


class ItemText(ApiModel):
    """A part of an item's content. The models here read text alone."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class MessageItem(ApiModel):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ItemText]
    id: str | None = None
    status: ItemStatus | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(ApiModel):
    type: Literal["function_call"]
    call_id: str
    name: str = Field(min_length=1)
    arguments: str
    id: str | None = None
    status: ItemStatus | None = None


class CustomCallItem(ApiModel):
    type: Literal["custom_tool_call"]
    call_id: str
    name: str = Field(min_length=1)
    input: str
    id: str | None = None
    status: ItemStatus | None = None


class CallOutputItem(ApiModel):
    """What a tool returned."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: str | list[ItemText]
    id: str | None = None
    status: ItemStatus | None = None


class ThoughtText(ApiModel):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(ApiModel):
    """A thought. `encrypted_content` is the thought, encoded, for clients that send nothing else back."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ThoughtText] = Field(default_factory=list)
    content: list[ThoughtText] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None

    @property
    def text(self) -> str:
        if self.content or self.encrypted_content is None:
            return "".join(part.text for part in self.content or ())
        return decoded_thought(self.encrypted_content)


class ItemReference(ApiModel):
    """Stands for an item of a stored response."""

    type: Literal["item_reference"]
    id: str


class SearchResult(ApiModel):
    text: str
    file_id: str | None = None
    filename: str = ""
    score: float | None = None
    attributes: dict[str, Any] | None = None

    @property
    def passage(self) -> Passage:
        return Passage(self.text, str((self.attributes or {}).get("title", "")), self.filename)


class FileSearchCallItem(ApiModel):
    """A search that the server made. Without its results the model is not told of it again."""

    type: Literal["file_search_call"]
    id: str
    queries: list[str]
    results: list[SearchResult] | None = None
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] | None = None

    @property
    def name(self) -> str:
        return SEARCH

    @property
    def arguments(self) -> str:
        return json.dumps({"query": " ".join(self.queries)}, ensure_ascii=False)

    @property
    def output(self) -> str | None:
        if self.results is None:
            return None
        return passage_format().lines([each.passage for each in self.results])


class McpCallItem(ApiModel):
    """A call of one of the server's built-in tools."""

    type: Literal["mcp_call"]
    id: str
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: str | None = None
    approval_request_id: None = None
    status: Literal["in_progress", "completed", "incomplete", "calling", "failed"] | None = None


InputItem = Annotated[
    Annotated[MessageItem, Tag("MessageItem")]
    | Annotated[FunctionCallItem, Tag("FunctionCallItem")]
    | Annotated[CustomCallItem, Tag("CustomCallItem")]
    | Annotated[CallOutputItem, Tag("CallOutputItem")]
    | Annotated[ReasoningItem, Tag("ReasoningItem")]
    | Annotated[FileSearchCallItem, Tag("FileSearchCallItem")]
    | Annotated[McpCallItem, Tag("McpCallItem")]
    | Annotated[ItemReference, Tag("ItemReference")],
    one_of(
        *(MessageItem, FunctionCallItem, CustomCallItem, CallOutputItem, ReasoningItem),
        *(FileSearchCallItem, McpCallItem, ItemReference),
        default="message",
    ),
]
HostedCall = FileSearchCallItem | McpCallItem
OwnItem = FunctionCallItem | CustomCallItem | ReasoningItem | MessageItem


def encoded_thought(text: str) -> str:
    """Return a thought as `encrypted_content`. It is no secret: the client may read its own answer."""
    return base64.b64encode(text.encode("utf-8", "replace")).decode()


def decoded_thought(text: str) -> str:
    """Return the thought that `encoded_thought` encoded. Raises ValueError for another text."""
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("encrypted_content: expected what this server made, found another text") from None


def conversation(items: Sequence[InputItem], instructions: str | None) -> list[dict[str, Any]]:
    """Return items as messages for chat templates. A thought, a text and calls that follow each other are one turn."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    turn: dict[str, Any] | None = None  # the assistant's message that may still grow
    for item in items:
        if isinstance(item, CallOutputItem):
            turn = None
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text_of_parts(item.output)})
        elif isinstance(item, MessageItem) and item.role != "assistant":
            turn = None
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": text_of_parts(item.content)})
        elif isinstance(item, HostedCall):
            messages += hosted_call(item, turn)
            turn = None
        elif not isinstance(item, ItemReference):  # references were replaced
            if turn is None or _begins_turn(item, turn):
                turn = {"role": "assistant", "content": ""}
                messages.append(turn)
            _extend(turn, item)
    return messages


def hosted_call(item: HostedCall, turn: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the messages of a call that the server ran; none without a result. An open turn gets the call."""
    output = item.output
    if isinstance(item, McpCallItem) and output is None:
        output = None if item.error is None else builtin_tools().failure(item.error)
    if output is None:
        return []
    new: dict[str, Any] = {"role": "assistant", "content": ""}
    call = {"id": item.id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
    (new if turn is None else turn).setdefault("tool_calls", []).append(call)
    result = {"role": "tool", "tool_call_id": item.id, "content": output}
    return [new, result] if turn is None else [result]


def _begins_turn(item: OwnItem, turn: dict[str, Any]) -> bool:
    """Return whether an item can't follow what a turn has: a turn's order is thought, text, calls."""
    if isinstance(item, ReasoningItem):
        return len(turn) > 2 or turn["content"] != ""
    return isinstance(item, MessageItem) and ("tool_calls" in turn or turn["content"] != "")


def _extend(turn: dict[str, Any], item: OwnItem) -> None:
    """Add an item of the assistant's to its turn."""
    if isinstance(item, ReasoningItem):
        turn["reasoning_content"] = item.text
    elif isinstance(item, MessageItem):
        turn["content"] = text_of_parts(item.content)
    else:
        arguments: Any = {INPUT: item.input} if isinstance(item, CustomCallItem) else item.arguments
        function = {"name": item.name, "arguments": arguments}
        turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})


def with_parts(item: dict[str, Any]) -> dict[str, Any]:
    """Return an item whose content is a text with this text as its one part, as the API shows items."""
    text = item.get("content")
    if not isinstance(text, str):
        return item
    own = {"type": "output_text", "annotations": []} if item["role"] == "assistant" else {"type": "input_text"}
    return {"status": "completed", **item, "content": [{**own, "text": text}]}


def text_of_parts(content: str | Sequence[ItemText]) -> str:
    """Return the text of an item's content."""
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content)
