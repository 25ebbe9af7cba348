"""The loop of an agent: ask the model, run the tools that it calls, and show it their results, within bounds."""

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import ConfigDict, create_model

from tiny_llm.apps.agent.act import CallResult, ToolRunner
from tiny_llm.apps.agent.builtin import LongOutputs
from tiny_llm.apps.agent.compact import compacted
from tiny_llm.apps.agent.nouns import (
    AgentCall,
    AgentEvent,
    AgentLimits,
    AgentReply,
    Approval,
    ApprovalRules,
    Approve,
    ChatModel,
    ReplyEnd,
    refuse_all,
)
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.apps.agent.tools import AgentTool, by_name
from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return {"name", "description", "parameters"} of a typed function, by its signature and docstring.

    The description is the docstring's first paragraph, in one line. `parameters` is a JSON schema that pydantic makes
    of the parameters' types; those without a default are required, and other names are forbidden. Raises ValueError
    for a parameter without a type, and for *args and **kwargs, which a schema can't name.
    """
    signature = inspect.signature(function, eval_str=True)
    fields: dict[str, Any] = {}
    # TASK w3.13.1: a field for each parameter, and the docstring's first paragraph
    for name, parameter in signature.parameters.items():
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if several or parameter.annotation is parameter.empty:
            raise ValueError(f"{function.__name__}: {name}: expected a parameter with a type, found none; add one")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (parameter.annotation, default)
    paragraph = (inspect.getdoc(function) or "").split("\n\n")[0]
    description = " ".join(paragraph.split())
    # END TASK
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    parameters = model.model_json_schema()
    parameters.pop("title", None)
    return {"name": function.__name__, "description": description, "parameters": parameters}


def joined_reply(parts: Sequence[AnswerPart], first: int) -> AgentReply:
    """Join the parts of a reply: its thought, its text and its calls.

    A call comes as a CallBegin with its number and name, and any number of CallArguments with pieces of its arguments'
    JSON text; pieces of several calls may alternate. The ids of the calls count on from `first`: "call_7", "call_8".
    `arguments` is None where the text is no JSON object.
    """
    reasoning = content = ""
    names: dict[int, str] = {}
    texts: dict[int, str] = {}
    # TASK w3.13.2: join the parts by kind, and parse each call's arguments
    for part in parts:
        if isinstance(part, Reasoning):
            reasoning += part.text
        elif isinstance(part, Content):
            content += part.text
        elif isinstance(part, CallBegin):
            names[part.index] = part.name
            texts.setdefault(part.index, "")
        elif isinstance(part, CallArguments):
            texts[part.index] = texts.get(part.index, "") + part.text
    calls = []
    for number, index in enumerate(sorted(names)):
        try:
            arguments = json.loads(texts[index])
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            arguments = None
        calls.append(AgentCall(f"call_{first + number}", names[index], arguments, texts[index]))
    # END TASK
    return AgentReply(reasoning, content, tuple(calls))


def approval_of(tool: AgentTool, call: AgentCall, rules: ApprovalRules, tainted: bool) -> Approval:
    """Return whether a call runs, needs an approval, or is refused.

    A rule that denies comes first. A tool without effects runs. `tainted`: the model has read text that the user did
    not write. That text may have made the call, so a call with effects needs an approval then, whatever was allowed
    before. Otherwise a rule that allows lets it run.
    """
    # TASK w3.13.4: deny, harmless, tainted, allowed
    if rules.denies(call):
        return Approval.REFUSE
    if not tool.effects:
        return Approval.RUN
    if tainted or not rules.allows(call):
        return Approval.ASK
    return Approval.RUN
    # END TASK


class Agent:
    """A model with tools and a session. `run` is the only way in: an async iterator of events.

    `approve` is asked before a call with effects; without it there is no user to ask, and such a call is refused
    unless `rules` allow it. `steer` and `cancel` may be called from any thread while `run` goes on.
    """

    def __init__(
        self,
        model: ChatModel,
        tools: Sequence[AgentTool],
        session: AgentSession,
        *,
        limits: AgentLimits | None = None,
        rules: ApprovalRules | None = None,
        approve: Approve = refuse_all,
        outputs: LongOutputs | None = None,
    ):
        self.model, self.session = model, session
        self.limits, self.rules, self.approve = limits or AgentLimits(), rules or ApprovalRules(), approve
        self.tools = by_name(list(tools))
        self.schemas = [tool.schema for tool in self.tools.values()]
        self.outputs = outputs or LongOutputs()
        self.runner = ToolRunner(self.tools, self.outputs, self.limits.tool_seconds, self.limits.repeats)
        self.steps = self.tokens = 0  # of the current run
        self.ends: list[ReplyEnd] = []  # of all replies
        self._end_time = 0.0
        self._stop = ""
        self._steered: list[str] = []
        self._wake: Callable[[], object] = lambda: None

    def steer(self, text: str) -> None:
        """Tell the model something before its next reply."""
        self._steered.append(text)

    def cancel(self) -> None:
        """End the run as soon as possible. A tool that runs in a thread is left to its end, its result unread."""
        self._stop = "cancelled"
        self._wake()

    async def run(self, task: str | None = None) -> AsyncIterator[AgentEvent]:
        """Work on a task, or without one go on with an interrupted session, and yield what happens.

        The last event is of kind "end", with a `reason`: answered, cancelled, or the bound that was reached: steps,
        tokens, time, context, repeats.
        """
        self._begin()
        if task is not None:
            yield self.session.add("user", text=task)
        async for event in self._act(self.session.unfinished()):
            yield event
        reason = self.bound_reached()
        # TASK w3.13.3: ask and act, until a reply has no calls or a bound is reached
        while not reason:
            async for event in self._ask():
                yield event
            calls = self.session.unfinished()
            if not calls:
                reason = self._stop or "answered"
            async for event in self._act(calls):
                yield event
            reason = reason or self.bound_reached()
        # END TASK
        yield self.session.add("end", reason=reason, steps=self.steps, tokens=self.tokens)

    def bound_reached(self) -> str:
        """Return the bound that ends the run, "" for none."""
        if self._stop:
            return self._stop
        if time.monotonic() >= self._end_time:
            return "time"
        if self.runner.is_stuck:
            return "repeats"
        if self.steps >= self.limits.steps:
            return "steps"
        return "tokens" if self.tokens >= self.limits.tokens else ""

    def _begin(self) -> None:
        self.steps = self.tokens = 0
        self._stop = ""
        self._end_time = time.monotonic() + self.limits.seconds
        self.runner.new_run()
        loop, self._cancelled = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(self._cancelled.set)

    async def _ask(self) -> AsyncIterator[AgentEvent]:
        """Let the model reply to all that was said, and add its reply to the session."""
        while self._steered:
            yield self.session.add("user", text=self._steered.pop(0))
        for event in self._make_room():
            yield event
        self.steps += 1
        if self._stop:
            return
        parts: list[AnswerPart] = []
        most = min(self.limits.answer_tokens, self.limits.tokens - self.tokens)
        end = ReplyEnd(self._stop or "cancelled")
        stream = self.model.reply(self.session.messages, self.schemas, most)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if isinstance(piece, ReplyEnd):
                    end = piece
                    continue
                parts.append(piece)
                if isinstance(piece, Content | Reasoning):
                    yield AgentEvent("text" if isinstance(piece, Content) else "reasoning", {"text": piece.text})
                if time.monotonic() >= self._end_time:
                    self._stop = self._stop or "time"
                if self._stop:
                    break
        self.ends.append(end)
        self.tokens += end.generated_tokens
        reply = joined_reply(parts, self.session.number_of_calls + 1)
        if self._stop:  # a reply that was broken off calls nothing
            reply = reply._replace(calls=())
        yield self.session.reply(reply, end)

    def _make_room(self) -> list[AgentEvent]:
        """Compact the messages where the context is nearly full."""
        context = self.model.context
        reserve = min(self.limits.answer_tokens, context // 4)
        count = self._count(self.session.messages)
        if count <= context - reserve:
            return []
        kept, dropped = compacted(self.session.messages, self._count, context // 2)
        if self._count(kept) >= context:
            self._stop = "context"
        return [self.session.add("compact", messages=kept, dropped=dropped, tokens=count)] if dropped else []

    def _count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        return self.model.count(messages, self.schemas)

    async def _act(self, calls: Sequence[AgentCall]) -> AsyncIterator[AgentEvent]:
        """Run calls, and add their results in order. Neighbouring calls without effects run side by side."""
        waiting: list[tuple[AgentCall, asyncio.Task[CallResult]]] = []
        tainted = self.session.tainted  # the calls of one reply were made before any of their results was read
        try:
            for number, call in enumerate(calls):
                tool = self.tools.get(call.name)
                alone = tool is None or tool.effects
                if alone:
                    async for event in self._results(waiting):
                        yield event
                refused = await self._refused(call, number, tainted)
                if refused is not None:
                    work = asyncio.create_task(_given(refused))
                else:
                    yield self.session.add("begin", call=call.id, name=call.name)
                    work = asyncio.create_task(self._until_cancelled(call))
                waiting.append((call, work))
                if alone:
                    async for event in self._results(waiting):
                        yield event
            async for event in self._results(waiting):
                yield event
        finally:
            for _, work in waiting:  # the caller has left
                work.cancel()

    async def _results(self, waiting: "list[tuple[AgentCall, asyncio.Task[CallResult]]]") -> AsyncIterator[AgentEvent]:
        """Wait for results in order, and take each from the list."""
        while waiting:
            call, work = waiting[0]
            event = self.session.result(call, await work)
            del waiting[0]
            yield event

    async def _refused(self, call: AgentCall, number: int, tainted: bool) -> CallResult | None:
        """Return the result of a call that does not run; None for a call that does."""
        if self._stop:
            return self.runner.failure("cancelled")
        if number >= self.limits.calls:
            return self.runner.failure(f"more than {self.limits.calls} calls in one reply: make this one later")
        tool = self.tools.get(call.name)
        if tool is not None and tool.effects and call.id in self.session.begun:
            return self.runner.failure("interrupted: look whether the call took effect")
        fault = self.runner.fault(call)
        if tool is None or fault is not None:
            return self.runner.failure(fault or "")
        decision = approval_of(tool, call, self.rules, tainted)
        if decision is Approval.ASK:
            reason = "text from outside came before it" if tainted else "it has effects"
            approved = await self.approve(call, reason)
            decision = Approval.RUN if approved else Approval.REFUSE
        return None if decision is Approval.RUN else self.runner.failure(f"the user did not approve {call.name}")

    async def _until_cancelled(self, call: AgentCall) -> CallResult:
        """Run a call. A cancelled run does not wait for it."""
        work = asyncio.ensure_future(self.runner.run(call))
        stop = asyncio.ensure_future(self._cancelled.wait())
        try:
            await asyncio.wait([work, stop], return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else self.runner.failure("cancelled")
        finally:
            stop.cancel()
            work.cancel()


async def _given(result: CallResult) -> CallResult:
    return result
