"""Answers for which the server itself runs tools: the agent's loop, with the engine's answers as its model."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

from tiny_llm.apps.agent.act import CallResult
from tiny_llm.apps.agent.documents import AnswerSearches
from tiny_llm.apps.agent.hosted import HostedTools
from tiny_llm.apps.agent.nouns import AgentEvent, AgentLimits, ChatMessages, ReplyEnd, ToolSchemas
from tiny_llm.decode.reply import AnswerPart
from tiny_llm.server.answer import Answers
from tiny_llm.server.ask import WantedCall
from tiny_llm.server.errors import out_of_time, unsupported
from tiny_llm.server.formats import Json
from tiny_llm.server.responses_format import ResponsesFormat
from tiny_llm.server.responses_types import FileSearchTool, ResponsesRequest

STEPS = 12  # replies of the model in one response; the last one must be an answer
ENDS = {"tokens": "max_output_tokens", "repeats": "repeated_tool_calls"}  # the agent's reasons as the response has them


def searches_of(asked: ResponsesRequest, hosted: HostedTools) -> AnswerSearches | None:
    """Return the searches for a request's answer; None where it has no file_search.

    Raises ApiError for tools that this server does not run.
    """
    tool = asked.hosted.get("file_search")
    if "mcp" in asked.hosted and hosted.root is None:
        remedy = "start it with `tiny-llm serve --agent FOLDER`, or leave the tool mcp out."
        raise unsupported("tools", f"tools: this server runs no built-in tools; {remedy}")
    if not isinstance(tool, FileSearchTool):
        return None
    if hosted.documents is None:
        remedy = "start it with `tiny-llm serve --documents INDEX`, or leave the tool file_search out."
        raise unsupported("tools", f"tools: this server has no documents to search; {remedy}")
    return hosted.searches(tool.max_num_results)


class AnswersChat:
    """The answers of a request as the agent's model: each reply is one more answer. The first one has begun."""

    def __init__(self, asked: ResponsesRequest, answers: Answers, form: ResponsesFormat):
        self.answers, self.form = answers, form
        self.context = answers.engine.llm.max_context
        self.calls_left = asked.max_tool_calls or STEPS * AgentLimits.calls
        self._is_first = True
        self._events: list[Json] = []

    def take_events(self) -> list[Json]:
        """Return the response's events since the last call."""
        events, self._events = self._events, []
        return events

    def count(self, messages: ChatMessages, tools: ToolSchemas) -> int:
        return 0  # messages are never dropped: a conversation that is too long is an error of the API

    async def reply(
        self, messages: ChatMessages, tools: ToolSchemas, most: int
    ) -> AsyncGenerator[AnswerPart | ReplyEnd, None]:
        answers = self.answers
        if not self._is_first:
            last = answers.asked[0].ask
            is_last = len(answers.asked) + 1 >= STEPS or self.calls_left <= 0
            choice = WantedCall("none" if is_last else "auto")
            settings = {**last.settings, "max_tokens": most}
            answers.add(replace(last, prompt=list(messages), tool_choice=choice, settings=settings))
        self._is_first = False
        one = answers.asked[-1]
        async for piece in one.pieces():
            self._events += self.form.events(piece)
            for part in piece.parts:
                yield part
        answers.check()
        collected = one.stream.collected
        reason = one.stream.finish_reason or "cancelled"
        yield ReplyEnd(reason, collected.prompt_tokens, collected.cached_tokens, collected.num_tokens)


async def agent_events(
    asked: ResponsesRequest,
    answers: Answers,
    form: ResponsesFormat,
    hosted: HostedTools,
    searches: AnswerSearches | None,
    seconds: float,
) -> AsyncGenerator[list[Json], None]:
    """Yield the events of the model's replies and of the calls that the server runs, and last those of the end.

    A call of a function of the client's ends the response, calls beside it stay undone.
    """
    model = AnswersChat(asked, answers, form)
    most = asked.max_output_tokens or model.context * STEPS
    limits = AgentLimits(STEPS, most, min(most, model.context), seconds)
    names = [name for name, kind in asked.kinds().items() if kind in ("file_search", "mcp")]
    messages: Any = answers.asked[0].ask.prompt
    agent = hosted.agent(model, names, messages, limits, searches)
    reason = ""
    run = cast("AsyncGenerator[AgentEvent, None]", agent.run())
    async with aclosing(run) as happened:
        async for event in happened:
            events = model.take_events()
            if event.kind == "assistant" and event.data["calls"]:
                events += form.end_reply()
            elif event.kind == "result":
                model.calls_left -= 1
                data = event.data
                events += form.result(CallResult(data["text"], data["failed"], data["foreign"]))
            yield events
            if event.kind == "assistant" and any(call["name"] not in names for call in event.data["calls"]):
                break
            if event.kind == "end":
                reason = event.data["reason"]
    if reason == "time":
        raise out_of_time(seconds)
    yield form.finish(ENDS.get(reason))
