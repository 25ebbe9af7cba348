"""Answers in the form of the Responses API: the events of a stream, which also build the whole response."""

import copy
import hashlib
import json
import secrets
import time
from pathlib import Path
from typing import Any

from tiny_llm.apps.agent.act import CallResult
from tiny_llm.apps.agent.documents import AnswerSearches
from tiny_llm.apps.rag.retriever import Hit
from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning
from tiny_llm.server.answer import AnswerPiece, Answers
from tiny_llm.server.errors import ApiError
from tiny_llm.server.formats import Json, logprob_entries, metrics_object, new_id
from tiny_llm.server.responses_items import INPUT, encoded_thought
from tiny_llm.server.responses_types import ENCRYPTED, LABEL, LOGPROBS, RESULTS, ResponsesRequest

PREFIXES = {
    "reasoning": "rs_",
    "message": "msg_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
    "file_search_call": "fs_",
    "mcp_call": "mcp_",
}
DELTAS = {  # the event with a piece of each type of item
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
    "mcp_call": "response.mcp_call_arguments",
}
WHOLE = ("custom_tool_call", "file_search_call")  # calls whose text comes whole, because it is escaped within JSON
ON_SERVER = ("file_search_call", "mcp_call")  # calls that are done when their result is there
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

    The id of an item has the response's, so that a stored item is found by its id alone. `searches`: those of the
    request's file_search, whose hits the answer may cite.
    """

    def __init__(self, asked: ResponsesRequest, answers: Answers, stored: bool, searches: AnswerSearches | None = None):
        self._asked, self._answers, self._searches = asked, answers, searches
        self._kinds = asked.kinds()
        self._running: list[Json] = []  # calls on the server without a result yet, in order
        self._results: dict[str, list[Json]] = {}  # what each search found, by the item's id
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

    def end_reply(self) -> list[Json]:
        """Return the events of the end of a reply that has calls: those of the last call's end."""
        events: list[Json] = []
        self._close(events, "completed")
        return events

    def result(self, result: CallResult) -> list[Json]:
        """Return the events of the result of the first call on the server that has none."""
        events: list[Json] = []
        item = self._running.pop(0)
        status = "failed" if result.failed else "completed"
        if item["type"] == "mcp_call":
            item["error" if result.failed else "output"] = result.message if result.failed else result.text
        elif not result.failed and self._searches is not None:
            hits = self._searches.found(item["queries"][0])
            self._results[item["id"]] = [search_result(hit, hits[0].score) for hit in hits]
            if self._asked.wants(RESULTS):
                item["results"] = self._results[item["id"]]
        if item["type"] == "mcp_call" or not result.failed:
            self._emit_of(item, events, f"response.{item['type']}.{status}")
        self._done(item, status, events)
        return events

    def finish(self, reason: str | None = None) -> list[Json]:
        """Return the events of the answer's end but the last, and complete the response.

        `reason`: why it is incomplete, None where it has as many tokens as it may, or is complete.
        """
        events: list[Json] = []
        if reason is None and self._answers.asked[-1].stream.finish_reason == "length":
            reason = "max_output_tokens"
        status = "completed" if reason is None else "incomplete"
        self._close(events, status)
        for item in self._running:
            self._done(item, "incomplete", events)
        self.response |= {"status": status, "completed_at": int(time.time()), "usage": self._usage()}
        if reason is not None:
            self.response |= {"completed_at": None, "incomplete_details": {"reason": reason}}
        if self._asked.return_metrics:
            self.response["metrics"] = metrics_object(self._answers)
        return events

    def record(self, given: list[Json]) -> Json:
        """Return what is stored: the response, the request's own items with ids, and the items for the next turn.

        The next turn needs what each search found, though the response may leave it out.
        """
        for number, item in enumerate(given):
            item.setdefault("id", f"{PREFIXES.get(item['type'], 'item_')}{self._name}_in{number}")
        output = []
        for item in self.response["output"]:
            found = self._results.get(item["id"])
            output.append(item if found is None else {**item, "results": found})
        return {"response": self.response, "input": given, "output": output}

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
            self._open(new_call(part.name, self._kinds.get(part.name, "function")), events)
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
        place = len(output) - 1
        self._emit(events, "response.output_item.added", item=copy.deepcopy(self._item), output_index=place)
        if item["type"] in ON_SERVER:
            self._emit_here(events, f"response.{item['type']}.in_progress")
        if "content" in item:
            self._emit_here(events, "response.content_part.added", part=self._part(), content_index=0)

    def _grow(self, text: str, events: list[Json]) -> None:
        """Add a text to the open item."""
        kind = self._item["type"]
        self._text += text
        if kind in WHOLE:
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
        if kind in ("function_call", "mcp_call"):
            self._item["arguments"] = self._text
            self._emit_here(events, f"{DELTAS[kind]}.done", arguments=self._text, name=self._item["name"])
        elif kind == "custom_tool_call":
            self._item["input"] = text = text_in(self._text, INPUT)
            self._emit_here(events, f"{DELTAS[kind]}.delta", delta=text)
            self._emit_here(events, f"{DELTAS[kind]}.done", input=text)
        elif kind == "file_search_call":
            self._item["queries"] = [text_in(self._text, "query")]
            self._emit_here(events, "response.file_search_call.searching")
        else:
            self._close_part(events)
        if kind == "reasoning" and self._asked.wants(ENCRYPTED):
            self._item["encrypted_content"] = encoded_thought(self._text)
        if kind in ON_SERVER:
            self._running.append(self._item)
        else:
            self._done(self._item, status, events)
        self._item, self._text, self._logprobs = {}, "", []

    def _done(self, item: Json, status: str, events: list[Json]) -> None:
        item["status"] = status
        place = self.response["output"].index(item)
        self._emit(events, "response.output_item.done", item=copy.deepcopy(item), output_index=place)

    def _close_part(self, events: list[Json]) -> None:
        """End the part of a thought or a message."""
        self._item["content"].append(self._part())
        if self._searches is not None and self._item["type"] == "message":
            self._annotate(self._searches, events)
        fields: Json = {"text": self._text, "content_index": 0}
        if self._item["type"] == "message":
            fields["logprobs"] = self._item["content"][0]["logprobs"]
        self._emit_here(events, f"{DELTAS[self._item['type']]}.done", **fields)
        part = copy.deepcopy(self._item["content"][0])
        self._emit_here(events, "response.content_part.done", part=part, content_index=0)

    def _annotate(self, searches: AnswerSearches, events: list[Json]) -> None:
        """Add the documents that the message cites to its part."""
        annotations: list[Json] = self._item["content"][0]["annotations"]
        for number, (place, hit) in enumerate(searches.cited(self._text)):
            annotation = {"type": "file_citation", "index": place, **file_of(hit)}
            annotations.append(annotation)
            kind = "response.output_text.annotation.added"
            self._emit_here(events, kind, content_index=0, annotation_index=number, annotation=annotation)

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

    def _emit_here(self, events: list[Json], kind: str, **fields: Any) -> None:
        """Add an event of the open item."""
        self._emit_of(self._item, events, kind, **fields)

    def _emit_of(self, item: Json, events: list[Json], kind: str, **fields: Any) -> None:
        place = self.response["output"].index(item)
        self._emit(events, kind, item_id=item["id"], output_index=place, **fields)

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


def new_call(name: str, kind: str) -> Json:
    """Return the item of a call that begins, by the type of its tool."""
    if kind == "file_search":
        return {"type": "file_search_call", "queries": [], "results": None}
    if kind == "mcp":
        fields = {"arguments": "", "output": None, "error": None, "approval_request_id": None}
        return {"type": "mcp_call", "server_label": LABEL, "name": name, **fields}
    call = {"call_id": new_id("call_"), "name": name}
    if kind == "custom":
        return {"type": "custom_tool_call", **call, "input": ""}
    return {"type": "function_call", **call, "arguments": ""}


def file_of(hit: Hit) -> Json:
    """Return the name of a hit's document, and an id that tells it from others of this name but not its folder."""
    digest = hashlib.sha256(hit.chunk.source.encode("utf-8", "replace")).hexdigest()
    return {"file_id": f"file-{digest[:24]}", "filename": Path(hit.chunk.source).name}


def search_result(hit: Hit, best: float) -> Json:
    """Return a hit in the form of the API. Its score is relative to the `best` one of its search."""
    attributes: Json = {"title": hit.chunk.title}
    if hit.chunk.page is not None:
        attributes["page"] = hit.chunk.page
    score = hit.score / best if best > 0 else 0.0
    return {**file_of(hit), "score": score, "text": hit.chunk.text, "attributes": attributes}


def text_in(arguments: str, name: str) -> str:
    """Return the text under a name in a call's arguments, or all of them where it is missing."""
    try:
        found = json.loads(arguments)[name]
    except (ValueError, KeyError, TypeError):
        return arguments
    return found if isinstance(found, str) else arguments
