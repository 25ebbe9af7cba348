"""Answers in the form of the Responses API: the events of a stream, which also build the whole response."""

import copy
import json
import secrets
import time
from typing import Any

from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning
from tiny_llm.server.answer import AnswerPiece, Answers
from tiny_llm.server.errors import ApiError
from tiny_llm.server.formats import Json, logprob_entries, metrics_object, new_id
from tiny_llm.server.responses_items import INPUT, encoded_thought
from tiny_llm.server.responses_types import ENCRYPTED, LOGPROBS, ResponsesRequest

PREFIXES = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_", "custom_tool_call": "ctc_"}
DELTAS = {  # the event with a piece of each type of item
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}
REPEATED: Json = {  # fields of the request that the response has, too, and their defaults
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": None,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}


class ResponsesFormat:
    """The answer to one request. `response` is the whole response once all events were made.

    The id of an item has the response's, so that a stored item is found by its id alone.
    """

    def __init__(self, asked: ResponsesRequest, answers: Answers, stored: bool):
        self._asked, self._answers = asked, answers
        self._name = secrets.token_hex(12)
        self._number = 0  # of the next event
        self._item: Json = {}  # the item that still grows; empty for none
        self._text = ""  # of the item: a thought, a text, or arguments as JSON
        self._logprobs: list[Json] = []  # of the message's tokens whose text has come
        self._held: list[Json] = []  # of tokens whose text is held back
        self._has_logprobs = asked.top_logprobs is not None or asked.wants(LOGPROBS)
        self.response = new_response(asked, f"resp_{self._name}", stored)

    def start(self) -> list[Json]:
        """Return the events before the answer."""
        events: list[Json] = []
        for kind in ("response.created", "response.in_progress"):
            self._emit(events, kind, response=copy.deepcopy(self.response))
        return events

    def events(self, piece: AnswerPiece) -> list[Json]:
        """Return the events of the answer's next piece."""
        events: list[Json] = []
        if self._has_logprobs:
            self._held += logprob_entries([piece.delta], self._answers.engine.llm.tokenizer)
        for part in piece.parts:
            self._add(part, events)
        if self._item.get("type") != "message":  # tokens of thoughts and calls have no place for theirs
            self._held = []
        return events

    def finish(self) -> list[Json]:
        """Return the events of the answer's end but the last, and complete the response."""
        events: list[Json] = []
        stream = self._answers.asked[0].stream
        status = "incomplete" if stream.finish_reason == "length" else "completed"
        self._close(events, status)
        self.response |= {"status": status, "completed_at": int(time.time()), "usage": self._usage()}
        if status == "incomplete":
            self.response |= {"completed_at": None, "incomplete_details": {"reason": "max_output_tokens"}}
        if self._asked.return_metrics:
            self.response["metrics"] = metrics_object(self._answers)
        return events

    def last(self) -> list[Json]:
        """Return the last event, which has the whole response."""
        events: list[Json] = []
        self._emit(events, f"response.{self.response['status']}", response=self.response)
        return events

    def failed(self, error: ApiError) -> list[Json]:
        """Return the events of an error in the middle of the answer."""
        events: list[Json] = []
        self._emit(events, "error", code=error.code, message=error.message, param=error.param)
        self.response["status"] = "failed"
        self.response["error"] = {"code": error.code or "server_error", "message": error.message}
        self._emit(events, "response.failed", response=self.response)
        return events

    def _add(self, part: AnswerPart, events: list[Json]) -> None:
        """Append a part to the item that is open, or to a new one."""
        if isinstance(part, Reasoning):
            if self._item.get("type") != "reasoning":
                self._open({"type": "reasoning", "summary": [], "content": []}, events)
            self._grow(part.text, events)
        elif isinstance(part, Content):
            if self._item.get("type") != "message":
                self._open({"type": "message", "role": "assistant", "content": []}, events)
            self._grow(part.text, events)
        elif isinstance(part, CallBegin):
            call = {"call_id": new_id("call_"), "name": part.name}
            if part.name in self._asked.custom_tools:
                self._open({"type": "custom_tool_call", **call, "input": ""}, events)
            else:
                self._open({"type": "function_call", **call, "arguments": ""}, events)
        else:
            assert isinstance(part, CallArguments)
            self._grow(part.text, events)

    def _open(self, item: Json, events: list[Json]) -> None:
        """Begin an item, and its part if it has a content."""
        self._close(events, "completed")
        output: list[Json] = self.response["output"]
        name = f"{PREFIXES[item['type']]}{self._name}_{len(output)}"
        self._item = {"id": name, **item, "status": "in_progress"}
        output.append(self._item)
        self._emit(events, "response.output_item.added", item=copy.deepcopy(self._item), output_index=self._index)
        if "content" in item:
            self._emit_here(events, "response.content_part.added", part=self._part(), content_index=0)

    def _grow(self, text: str, events: list[Json]) -> None:
        """Add a text to the open item. The input of a custom tool comes whole, because it is escaped within JSON."""
        kind = self._item["type"]
        self._text += text
        if kind == "custom_tool_call":
            return
        fields: Json = {"delta": text}
        if "content" in self._item:
            fields["content_index"] = 0
        if kind == "message":
            fields["logprobs"] = self._held
            self._logprobs += self._held
            self._held = []
        self._emit_here(events, f"{DELTAS[kind]}.delta", **fields)

    def _close(self, events: list[Json], status: str) -> None:
        """End the open item, if there is one."""
        if not self._item:
            return
        kind = self._item["type"]
        if kind == "function_call":
            self._item["arguments"] = self._text
            self._emit_here(events, f"{DELTAS[kind]}.done", arguments=self._text, name=self._item["name"])
        elif kind == "custom_tool_call":
            self._item["input"] = text = custom_input(self._text)
            self._emit_here(events, f"{DELTAS[kind]}.delta", delta=text)
            self._emit_here(events, f"{DELTAS[kind]}.done", input=text)
        else:
            self._close_part(events)
        self._item["status"] = status
        if kind == "reasoning" and self._asked.wants(ENCRYPTED):
            self._item["encrypted_content"] = encoded_thought(self._text)
        self._emit(events, "response.output_item.done", item=copy.deepcopy(self._item), output_index=self._index)
        self._item, self._text, self._logprobs = {}, "", []

    def _close_part(self, events: list[Json]) -> None:
        """End the part of a thought or a message."""
        self._item["content"].append(self._part())
        fields: Json = {"text": self._text, "content_index": 0}
        if self._item["type"] == "message":
            fields["logprobs"] = self._item["content"][0]["logprobs"]
        self._emit_here(events, f"{DELTAS[self._item['type']]}.done", **fields)
        part = copy.deepcopy(self._item["content"][0])
        self._emit_here(events, "response.content_part.done", part=part, content_index=0)

    def _part(self) -> Json:
        """Return the content of a thought or a message."""
        if self._item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": self._text}
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}

    def _usage(self) -> Json:
        counts = self._answers.usage
        return {
            "input_tokens": counts.prompt,
            "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
            "output_tokens": counts.completion,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning},
            "total_tokens": counts.prompt + counts.completion,
        }

    @property
    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _emit_here(self, events: list[Json], kind: str, **fields: Any) -> None:
        """Add an event of the open item."""
        self._emit(events, kind, item_id=self._item["id"], output_index=self._index, **fields)

    def _emit(self, events: list[Json], kind: str, **fields: Any) -> None:
        events.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1


def new_response(asked: ResponsesRequest, name: str, stored: bool) -> Json:
    """Return the response to a request before its answer begins: it repeats the request's settings."""
    given = asked.model_dump(exclude_unset=True, by_alias=True, include={*REPEATED, "text", "reasoning"})
    text = {"format": {"type": "text"}, **given.pop("text", {})}
    reasoning = {"effort": None, "summary": None, **(given.pop("reasoning", None) or {})}
    return {
        "id": name,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": asked.model,
        "output": [],
        "store": stored,
        "text": text,
        "reasoning": reasoning,
        "usage": None,
        **REPEATED,
        **{field: value for field, value in given.items() if value is not None},
    }


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool's call: the one text in its arguments, or all of them where it is missing."""
    try:
        found = json.loads(arguments)[INPUT]
    except (ValueError, KeyError, TypeError):
        return arguments
    return found if isinstance(found, str) else arguments
