"""Answers in the forms of the OpenAI API: chunks of a stream, and whole responses."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning
from tiny_llm.decode.text import Delta
from tiny_llm.model.tokenizer import Tokenizer
from tiny_llm.server.answer import AnswerPiece, Answers, UsageCounts, WholeAnswer, speculation_figures

Json = dict[str, Any]


def new_id(prefix: str) -> str:
    """Return a new id such as chatcmpl-1f0c…."""
    return f"{prefix}{secrets.token_hex(12)}"


def usage_object(counts: UsageCounts) -> Json:
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.prompt + counts.completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
    }


def metrics_object(answers: Answers) -> Json:
    """Return the figures that `return_metrics` asks for. Times are in seconds."""
    stats = answers.asked[0].stream.stats
    deltas: list[Delta] = []
    for one in answers.asked:
        for answer in one.stream.collected.answers.values():
            deltas += answer
    return {
        "queue_time": stats.queue_time,
        "time_to_first_token": stats.time_to_first_token,
        "inter_token_time": stats.inter_token_time,
        "prefix_miss": stats.prefix_miss._asdict() if stats.prefix_miss else None,
        "speculative_decoding": speculation_figures(deltas),
    }


def last_chunk(head: Json, answers: Answers, wants_metrics: bool) -> Json:
    """Return the chunk behind all answers, which has no choices."""
    return with_usage({**head, "choices": []}, answers, wants_metrics)


def with_usage(body: Json, answers: Answers, wants_metrics: bool) -> Json:
    """Add to a body what its answers took."""
    body["usage"] = usage_object(answers.usage)
    if wants_metrics:
        body["metrics"] = metrics_object(answers)
    return body


class ChatFormat:
    """The answers of one chat request, in chunks or whole. `head`: the fields that all its objects have."""

    def __init__(self, model: str, created: int, tokenizer: Tokenizer, wants_logprobs: bool):
        self.head = {"id": new_id("chatcmpl-"), "object": "chat.completion.chunk", "created": created, "model": model}
        self.tokenizer, self.wants_logprobs = tokenizer, wants_logprobs
        self._begun: set[int] = set()
        self._called: set[int] = set()  # answers that call a tool

    def chunks(self, piece: AnswerPiece) -> list[Json]:
        """Return the chunks for a piece: one for each part, and one for the end."""
        index = piece.answer
        fields = [self._fields(index, part) for part in piece.parts]
        logprobs = self._logprobs([piece.delta])
        if index not in self._begun:
            self._begun.add(index)
            fields.insert(0, {"role": "assistant", "content": ""})
        if not fields and logprobs is not None:
            fields.append({})
        chunks = []
        for place, delta in enumerate(fields):
            mine = logprobs if place == len(fields) - 1 else None
            chunks.append(self._chunk({"index": index, "delta": delta, "logprobs": mine, "finish_reason": None}))
        if piece.delta.finish_reason is not None:
            reason = chat_reason(piece.delta.finish_reason, index in self._called)
            chunks.append(self._chunk({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}))
        return chunks

    def whole(self, answers: Answers, collected: Sequence[WholeAnswer], wants_metrics: bool) -> Json:
        """Return the response for whole answers."""
        choices = []
        for index, answer in enumerate(collected):
            reason = chat_reason(answer.finish_reason, bool(answer.calls))
            logprobs = self._logprobs(answer.deltas)
            message = chat_message(answer)
            choices.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        return with_usage({**self.head, "object": "chat.completion", "choices": choices}, answers, wants_metrics)

    def _chunk(self, choice: Json) -> Json:
        return {**self.head, "choices": [choice]}

    def _fields(self, index: int, part: AnswerPart) -> Json:
        """Return a part as the fields of a chunk's delta. A call's id and name are sent once."""
        if isinstance(part, Content):
            return {"content": part.text}
        if isinstance(part, Reasoning):
            return {"reasoning": part.text, "reasoning_content": part.text}
        if isinstance(part, CallBegin):
            self._called.add(index)
            function = {"name": part.name, "arguments": ""}
            call = {"index": part.index, "id": new_id("call_"), "type": "function", "function": function}
            return {"tool_calls": [call]}
        assert isinstance(part, CallArguments)
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}

    def _logprobs(self, deltas: Sequence[Delta]) -> Json | None:
        """Return the log-probabilities of tokens, without the one that ended the answer; None if not asked for."""
        if not self.wants_logprobs:
            return None
        content = logprob_entries(deltas, self.tokenizer)
        return {"content": content, "refusal": None} if content else None


def chat_reason(reason: str, calls: bool) -> str:
    """Return the API's word for why an answer ended. An answer that was cut off has no whole call as its end."""
    return "tool_calls" if calls and reason == "stop" else reason


def chat_message(answer: WholeAnswer) -> Json:
    """Return the assistant's message of a whole answer. Content is null where the answer only calls tools."""
    message: Json = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.reasoning:
        message |= {"reasoning": answer.reasoning, "reasoning_content": answer.reasoning}
    if answer.calls:
        message["content"] = answer.content or None
        calls = []
        for call in answer.calls:
            function = {"name": call.name, "arguments": call.arguments}
            calls.append({"id": new_id("call_"), "type": "function", "function": function})
        message["tool_calls"] = calls
    return message


def logprob_entries(deltas: Sequence[Delta], tokenizer: Tokenizer) -> list[Json]:
    """Return the log-probabilities of tokens, without the one that ended the answer."""
    entries = []
    for delta in deltas:
        if delta.token is None or delta.logprobs is None or ends(delta, tokenizer):
            continue
        top = [token_object(tokenizer, token, logprob) for token, logprob in delta.logprobs.top]
        entry = token_object(tokenizer, delta.token, delta.logprobs.logprob)
        entries.append({**entry, "top_logprobs": top})
    return entries


def ends(delta: Delta, tokenizer: Tokenizer) -> bool:
    """Return whether a delta's token only ended the answer."""
    return delta.finish_reason == "stop" and delta.token in tokenizer.eos_token_ids


def token_object(tokenizer: Tokenizer, token: int, logprob: float) -> Json:
    """Return a token's text, its bytes, which may be a part of a character, and its log-probability."""
    return {"token": tokenizer.token(token), "logprob": logprob, "bytes": list(tokenizer.token_bytes(token))}


class CompletionFormat:
    """The answers of one request to /v1/completions. `echoes`: the text that stands before each answer."""

    def __init__(self, model: str, created: int, tokenizer: Tokenizer, echoes: Sequence[str]):
        self.head = {"id": new_id("cmpl-"), "object": "text_completion", "created": created, "model": model}
        self.tokenizer = tokenizer
        self._echoes = list(echoes)
        self._lengths: dict[int, int] = {}  # characters of each answer so far

    def chunks(self, piece: AnswerPiece) -> list[Json]:
        """Return the chunk for a piece; none for a piece without text that ends nothing."""
        echo = "" if piece.answer in self._lengths else self._echoes[piece.answer]
        text = echo + piece.delta.text
        logprobs = self._logprobs(piece.answer, [piece.delta])
        self._lengths[piece.answer] = self._lengths.get(piece.answer, 0) + len(text)
        if not text and piece.delta.finish_reason is None and logprobs is None:
            return []
        choice = {"index": piece.answer, "text": text, "logprobs": logprobs}
        choice["finish_reason"] = piece.delta.finish_reason
        return [{**self.head, "choices": [choice]}]

    def whole(self, answers: Answers, collected: Sequence[WholeAnswer], wants_metrics: bool) -> Json:
        """Return the response for whole answers."""
        choices = []
        for index, answer in enumerate(collected):
            text = self._echoes[index] + "".join(delta.text for delta in answer.deltas)
            logprobs = self._logprobs(index, answer.deltas)
            choices.append({"index": index, "text": text, "logprobs": logprobs, "finish_reason": answer.finish_reason})
        return with_usage({**self.head, "choices": choices}, answers, wants_metrics)

    def _logprobs(self, index: int, deltas: Sequence[Delta]) -> Json | None:
        """Return the log-probabilities in this API's form: parallel lists."""
        found: Mapping[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        offset = self._lengths.get(index, len(self._echoes[index]))
        for delta in deltas:
            if delta.token is None or delta.logprobs is None:
                continue
            text = self.tokenizer.token(delta.token)
            found["tokens"].append(text)
            found["token_logprobs"].append(delta.logprobs.logprob)
            found["top_logprobs"].append(
                {self.tokenizer.token(token): logprob for token, logprob in delta.logprobs.top}
            )
            found["text_offset"].append(offset)
            offset += len(delta.text)
        return dict(found) if found["tokens"] else None
