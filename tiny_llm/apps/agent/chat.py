"""The models of an agent: an `LLM` for one caller, an `Engine` for many, and the replay of a session."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tiny_llm.apps.agent.nouns import AgentEvent, ChatMessages, ReplyEnd, ToolSchemas
from tiny_llm.config.fields import require
from tiny_llm.config.structured import Structured
from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning, Reply
from tiny_llm.decode.text import Delta
from tiny_llm.decode.tool_calls import ToolCallParser, call_form
from tiny_llm.decode.tool_grammar import call_grammar
from tiny_llm.decode.tool_values import tool_schemas
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.llm import LLM
from tiny_llm.engine.serving import Engine

ReplyPieces = AsyncGenerator[AnswerPart | ReplyEnd, None]


class Dialect:
    """How a model is shown tools and writes calls: its template, its parser and its grammar.

    `constrained`: a grammar makes each call well formed. Raises ValueError for a model whose template shows no calls.
    """

    def __init__(self, llm: LLM, template: Mapping[str, Any] | None = None, constrained: bool = True):
        self.tokenizer = llm.tokenizer
        form = call_form(llm.tokenizer.templates)
        if form is None:
            raise ValueError(f"{llm.name}: expected a model whose chat template shows tool calls; take another model")
        self.form, self.constrained = form, constrained
        self.template = dict(template or {})
        self._grammars: dict[tuple[str, ...], Structured] = {}

    def grammar(self, tools: ToolSchemas) -> Structured | None:
        """Return the grammar of a reply; None without tools or constraint."""
        if not tools or not self.constrained:
            return None
        names = tuple(map(str, tools))
        if names not in self._grammars:
            self._grammars[names] = call_grammar(self.tokenizer, self.form, tools)
        return self._grammars[names]

    def parser(self, messages: ChatMessages, tools: ToolSchemas) -> Reply:
        """Return the parser of the next reply."""
        opens = self.tokenizer.render(messages, tools=list(tools), **self.template).opens_thought
        calls = ToolCallParser(self.form, tool_schemas(tools), constrained=self.constrained)
        return Reply(opens, calls)

    def shown(self, messages: ChatMessages) -> list[Mapping[str, Any]]:
        """Return messages with the empty thought that the template wrote in front of each reply to the last question.

        Templates of Qwen3's kind leave an empty thought out of old replies, though the prompt of such a reply had one.
        So the next prompt would differ from the tokens that are computed. A thought of a line break alone is kept.
        """
        if self.template.get("enable_thinking") is not False:
            return list(messages)
        users = [place for place, message in enumerate(messages) if message["role"] == "user"]
        last = users[-1] if users else len(messages)
        found: list[Mapping[str, Any]] = []
        for place, message in enumerate(messages):
            empty = message["role"] == "assistant" and place > last and not message.get("reasoning_content")
            found.append({**message, "reasoning_content": "\n"} if empty else message)
        return found

    def settings(self, tools: ToolSchemas) -> dict[str, Any]:
        """Return the arguments of `render`."""
        return {**self.template, "tools": list(tools)}


def end_of(stats: Stats | None, reason: str | None) -> ReplyEnd:
    """Return the end of a reply with its figures."""
    if stats is None:
        return ReplyEnd(reason or "cancelled")
    return ReplyEnd(reason or "cancelled", stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens)


async def parted(deltas: AsyncIterator[Delta], reply: Reply) -> AsyncGenerator[AnswerPart | str, None]:
    """Yield the parts of an answer and, last, its finish reason."""
    reason = "cancelled"
    async for delta in deltas:
        for part in reply.feed(delta.text):
            yield part
        reason = delta.finish_reason or reason
    for part in reply.finish():
        yield part
    yield reason


class LLMChat:
    """An `LLM` as an agent's model. It computes in one thread of its own, so that its cache is kept between replies."""

    def __init__(
        self,
        llm: LLM,
        settings: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        constrained: bool = True,
    ):
        self.llm, self.settings = llm, dict(settings or {})
        self.dialect = Dialect(llm, template, constrained)
        self.context = llm.max_context
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tiny-llm agent")

    def count(self, messages: ChatMessages, tools: ToolSchemas) -> int:
        return len(self.llm.encode(self.dialect.shown(messages), self.dialect.settings(tools)))

    async def reply(self, messages: ChatMessages, tools: ToolSchemas, most: int) -> ReplyPieces:
        messages = self.dialect.shown(messages)
        template = self.dialect.settings(tools)
        settings = {**self.settings, "max_tokens": most, "structured": self.dialect.grammar(tools)}
        deltas = await self._do(lambda: self.llm.stream(messages, template=template, **settings))
        pieces = parted(self._read(deltas), self.dialect.parser(messages, tools))
        try:
            async for piece in pieces:
                yield end_of(self.llm.last_stats, piece) if isinstance(piece, str) else piece
        finally:
            await pieces.aclose()
            await self._do(deltas.close)

    async def _read(self, deltas: Iterator[Delta]) -> AsyncGenerator[Delta, None]:
        while True:
            delta = await self._do(next, deltas, None)
            if delta is None:
                return
            yield delta

    async def _do(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class EngineChat:
    """An `Engine` as an agent's model: many agents run side by side, and share the blocks of equal prefixes."""

    def __init__(
        self,
        engine: Engine,
        settings: Mapping[str, Any] | None = None,
        template: Mapping[str, Any] | None = None,
        constrained: bool = True,
    ):
        self.engine, self.settings = engine, dict(settings or {})
        self.dialect = Dialect(engine.llm, template, constrained)
        self.context = engine.llm.max_context

    def count(self, messages: ChatMessages, tools: ToolSchemas) -> int:
        return len(self.engine.llm.encode(self.dialect.shown(messages), self.dialect.settings(tools)))

    async def reply(self, messages: ChatMessages, tools: ToolSchemas, most: int) -> ReplyPieces:
        messages = self.dialect.shown(messages)
        template = self.dialect.settings(tools)
        settings = {**self.settings, "max_tokens": most, "structured": self.dialect.grammar(tools)}
        stream = self.engine.astream(messages, template=template, **settings)
        pieces = parted(stream, self.dialect.parser(messages, tools))
        try:
            async for piece in pieces:
                yield end_of(stream.stats, piece) if isinstance(piece, str) else piece
        finally:
            with suppress(RuntimeError):
                await pieces.aclose()
            await stream.aclose()


class ReplayChat:
    """Gives the replies of a session again, in their order: its tools run anew, without a model."""

    context = 1 << 30

    def __init__(self, events: Sequence[AgentEvent]):
        self._replies = [event.data for event in events if event.kind == "assistant"]
        self._next = 0

    def count(self, messages: ChatMessages, tools: ToolSchemas) -> int:
        return 0

    async def reply(self, messages: ChatMessages, tools: ToolSchemas, most: int) -> ReplyPieces:
        require(self._next < len(self._replies), "replay: the session has no more replies; the tools' results differ")
        data = self._replies[self._next]
        self._next += 1
        for part in (Reasoning(data["reasoning"]), Content(data["content"])):
            if part.text:
                yield part
        for index, call in enumerate(data["calls"]):
            yield CallBegin(index, call["name"])
            yield CallArguments(index, call["text"])
        yield ReplyEnd(data["finish_reason"])
