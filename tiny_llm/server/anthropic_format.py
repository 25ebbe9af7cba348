"""Answers in the form of the Anthropic API: the events of a stream, which also build the whole message."""

import copy
import hashlib
import json
from collections.abc import Sequence

from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning
from tiny_llm.server.answer import AnswerPiece, Answers
from tiny_llm.server.formats import Json, ends, metrics_object, new_id


class MessageFormat:
    """The answer to one request. `message` is the whole message once all events were made.

    `stops`: the request's stop sequences.
    """

    def __init__(self, model: str, answers: Answers, stops: Sequence[str], wants_metrics: bool):
        self._answers, self._stops, self._wants_metrics = answers, stops, wants_metrics
        self._blocks: list[Json] = []
        self._open: str | None = None  # the type of the block that still grows
        self._input = ""  # of a tool_use block, as JSON
        self.message: Json = {
            "id": new_id("msg_"),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def start(self) -> list[Json]:
        """Return the events before the answer. Clients expect a ping behind the first."""
        self.message["usage"] = self._usage()
        return [{"type": "message_start", "message": copy.deepcopy(self.message)}, {"type": "ping"}]

    def events(self, piece: AnswerPiece) -> list[Json]:
        """Return the events of the answer's next piece."""
        events: list[Json] = []
        for part in piece.parts:
            self._add(part, events)
        return events

    def end(self) -> list[Json]:
        """Return the last events."""
        events: list[Json] = []
        self._close(events)
        reason, sequence = self._stop()
        stopped = {"stop_reason": reason, "stop_sequence": sequence}
        self.message |= stopped
        self.message["usage"] = self._usage()
        last: Json = {"type": "message_delta", "delta": stopped, "usage": self.message["usage"]}
        if self._wants_metrics:
            self.message["metrics"] = last["metrics"] = metrics_object(self._answers)
        return [*events, last, {"type": "message_stop"}]

    def _add(self, part: AnswerPart, events: list[Json]) -> None:
        """Append a part to the block that is open, or to a new one."""
        if isinstance(part, Reasoning):
            if self._open != "thinking":
                self._begin({"type": "thinking", "thinking": "", "signature": ""}, events)
            self._blocks[-1]["thinking"] += part.text
            self._delta({"type": "thinking_delta", "thinking": part.text}, events)
        elif isinstance(part, Content):
            if self._open != "text":
                self._begin({"type": "text", "text": ""}, events)
            self._blocks[-1]["text"] += part.text
            self._delta({"type": "text_delta", "text": part.text}, events)
        elif isinstance(part, CallBegin):
            self._begin({"type": "tool_use", "id": new_id("toolu_"), "name": part.name, "input": {}}, events)
        else:
            assert isinstance(part, CallArguments)
            self._input += part.text
            self._delta({"type": "input_json_delta", "partial_json": part.text}, events)

    def _begin(self, block: Json, events: list[Json]) -> None:
        """Open a block. Its id stands in this event alone: clients open a new block for each id that they read."""
        self._close(events)
        self._blocks.append(block)
        self._open = block["type"]
        events.append({"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": {**block}})

    def _delta(self, delta: Json, events: list[Json]) -> None:
        events.append({"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta})

    def _close(self, events: list[Json]) -> None:
        """Close the block that is open, if there is one."""
        if self._open is None:
            return
        block = self._blocks[-1]
        if self._open == "thinking":
            block["signature"] = hashlib.sha256(block["thinking"].encode()).hexdigest()
            self._delta({"type": "signature_delta", "signature": block["signature"]}, events)
        elif self._open == "tool_use":
            block["input"] = _object(self._input)
            self._input = ""
        self._open = None
        events.append({"type": "content_block_stop", "index": len(self._blocks) - 1})

    def _stop(self) -> tuple[str, str | None]:
        """Return why the answer ended, and the stop sequence that ended it."""
        reason = self._answers.asked[0].stream.finish_reason
        if reason == "length":  # the input of a call that was cut off is incomplete
            return "max_tokens", None
        if any(block["type"] == "tool_use" for block in self._blocks):
            return "tool_use", None
        sequence = self._stop_sequence()
        if sequence is not None:
            return "stop_sequence", sequence
        return "end_turn", None

    def _stop_sequence(self) -> str | None:
        """Return the stop sequence that ended the answer: the one that follows the text in what was generated."""
        deltas = self._answers.asked[0].stream.collected.answers.get(0)
        tokenizer = self._answers.engine.llm.tokenizer
        if not self._stops or not deltas or deltas[-1].finish_reason != "stop" or ends(deltas[-1], tokenizer):
            return None
        tokens = [delta.token for delta in deltas if delta.token is not None]
        length = sum(len(delta.text) for delta in deltas)
        for keep_special in (False, True):
            rest = tokenizer.decode(tokens, keep_special=keep_special)[length:]
            for stop in self._stops:
                if rest.startswith(stop):
                    return stop
        return None

    def _usage(self) -> Json:
        """Return the tokens so far. Those that the cache had are not among `input_tokens`."""
        counts = self._answers.usage
        return {
            "input_tokens": counts.prompt - counts.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.cached,
            "output_tokens": counts.completion,
            "output_tokens_details": {"thinking_tokens": counts.reasoning},
        }


def _object(text: str) -> Json:
    """Return the JSON object of a text; an empty one where the answer was cut off within it."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
