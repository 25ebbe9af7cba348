"""A model that walks a script, and an agent around it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tiny_llm.apps.agent.builtin import Builtin, LongOutputs, make_builtin
from tiny_llm.apps.agent.files import Root
from tiny_llm.apps.agent.loop import Agent
from tiny_llm.apps.agent.nouns import AgentEvent, ReplyEnd
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.apps.agent.tools import AgentTool
from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content

Call = tuple[str, Any]  # a tool's name and its arguments: an object, or the text of what should be one


class ScriptedChat:
    """Gives the next of `replies`: a text, a list of calls, or a function that is called and gives either."""

    context = 100_000

    def __init__(self, *replies: str | Sequence[Call] | Callable[[], Any]):
        self.replies = list(replies)
        self.asked: list[list[Mapping[str, Any]]] = []

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> int:
        return sum(len(str(message["content"])) for message in messages)

    async def reply(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], most: int
    ) -> AsyncGenerator[AnswerPart | ReplyEnd, None]:
        self.asked.append([dict(message) for message in messages])
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if callable(reply):
            reply = reply()
        if isinstance(reply, str):
            for piece in reply.split(" "):
                await asyncio.sleep(0)
                yield Content(piece + " ")
        else:
            for index, (name, arguments) in enumerate(reply):
                yield CallBegin(index, name)
                yield CallArguments(index, arguments if isinstance(arguments, str) else json.dumps(arguments))
        yield ReplyEnd("stop", 10, 5, 3)


def make_agent(
    folder: Path, *replies: Any, tools: list[AgentTool] | None = None, path: Path | None = None, **options: Any
) -> Agent:
    """An agent with a script and, unless `tools` are given, all built-in tools on `folder`."""
    session = AgentSession(path, "Be good.", str(folder))
    outputs = LongOutputs(options.pop("shown", 4_000))
    if tools is None:
        tools = make_builtin(Builtin(Root(folder, session.change), outputs))
    return Agent(ScriptedChat(*replies), tools, session, outputs=outputs, **options)


def run(agent: Agent, task: str | None = "Do it.") -> list[AgentEvent]:
    """All events of a run."""

    async def collect() -> list[AgentEvent]:
        return [event async for event in agent.run(task)]

    return asyncio.run(asyncio.wait_for(collect(), 60))


def results(events: list[AgentEvent]) -> list[str]:
    return [event.data["text"] for event in events if event.kind == "result"]


def reason(events: list[AgentEvent]) -> str:
    assert events[-1].kind == "end"
    return str(events[-1].data["reason"])


async def yes(*_: Any) -> bool:
    return True
