"""pocket as an agent's model, behind LLM and behind Engine: grammar, parser and prefix cache."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench.agent import Walker, judge
from bench.agent_tasks import injections, tasks
from tests.apps.agent.scripted import make_agent, reason, run
from tiny_llm import LLM, load
from tiny_llm.apps.agent.chat import EngineChat, LLMChat
from tiny_llm.apps.agent.loop import Agent
from tiny_llm.apps.agent.nouns import ReplyEnd
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.config.prompts import builtin_tools
from tiny_llm.decode.reply import CallArguments, CallBegin
from tiny_llm.engine.serving import Engine
from tiny_llm.pocket.lessons.tool_calls import NO_TOOL

pytest.importorskip("llguidance")
GREEDY = {"temperature": 0.0}
TEMPLATE = {"enable_thinking": False}
SCHEMAS = [tool.schema for tool in builtin_tools().tools.values()]
QUESTION = [{"role": "system", "content": builtin_tools().system}, {"role": "user", "content": "What is 37 + 1205?"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return load()


@pytest.fixture(params=["LLM", "Engine"])
def model(request: pytest.FixtureRequest, llm: LLM) -> Iterator[Any]:
    if request.param == "LLM":
        chat = LLMChat(llm, GREEDY, TEMPLATE)
        yield chat
        chat.close()
        return
    with Engine() as engine:
        yield EngineChat(engine, GREEDY, TEMPLATE)


async def collect(model: Any, messages: Any, most: int = 60) -> list[Any]:
    return [part async for part in model.reply(messages, SCHEMAS, most)]


def test_a_reply_has_parts_and_an_end(model: Any) -> None:
    parts = asyncio.run(collect(model, QUESTION))
    assert isinstance(parts[-1], ReplyEnd)
    assert parts[-1].prompt_tokens == model.count(QUESTION, SCHEMAS)
    assert parts[-1].generated_tokens > 0


def test_a_later_step_finds_the_earlier_prompt_in_the_cache(model: Any, tmp_path: Path) -> None:
    """The empty thought in front of the first reply must stay in the second prompt."""
    agent = make_agent(tmp_path, "")
    agent = Agent(model, list(agent.tools.values()), AgentSession(system=builtin_tools().system))
    call: Any = CallBegin(0, "calculator"), CallArguments(0, '{"expression": "37 + 1205"}')
    real = model.reply
    calls = 0

    async def reply(messages: Any, tools: Any, most: int) -> Any:
        nonlocal calls
        calls += 1
        async for part in real(messages, tools, 1 if calls == 1 else most):
            if isinstance(part, ReplyEnd):
                if calls == 1:
                    for each in call:
                        yield each
                yield part

    model.reply = reply
    try:
        assert reason(run(agent, "What is 37 + 1205?")) == "answered"
    finally:
        model.reply = real
    first, second = agent.ends
    block = 16  # the engine shares whole blocks
    assert second.cached_tokens >= first.prompt_tokens - block
    assert second.prompt_tokens > first.prompt_tokens


def test_a_reply_that_is_left_early_is_cancelled(model: Any) -> None:
    async def leave() -> None:
        stream = model.reply(QUESTION, SCHEMAS, 400)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave())
    assert isinstance(asyncio.run(collect(model, QUESTION, 5))[-1], ReplyEnd)


def test_agents_share_an_engine(tmp_path: Path) -> None:
    async def work(model: Any, number: int) -> str:
        agent = make_agent(tmp_path, "")
        agent = Agent(model, list(agent.tools.values()), AgentSession(system=builtin_tools().system))
        events = [event async for event in agent.run(f"What is 3{number} + 1205?")]
        return reason(events)

    async def main() -> list[str]:
        with Engine() as engine:
            return list(await asyncio.gather(*(work(EngineChat(engine, GREEDY, TEMPLATE), n) for n in range(3))))

    assert set(asyncio.run(main())) <= {"answered", "repeats", "steps", "tokens"}


def test_a_model_without_calls_in_its_template_is_refused(llm: LLM) -> None:
    bare = SimpleNamespace(name="bare", tokenizer=SimpleNamespace(templates={"default": "{{ messages }}"}))
    with pytest.raises(ValueError, match="bare: expected a model whose chat template shows tool calls"):
        LLMChat(cast(LLM, bare))


# the tasks of bench/agent.py


def test_the_reference_passes_every_task() -> None:
    found = tasks()
    assert len(found) == 200
    for task in found[::9]:
        outcome = judge(Walker([(call.name, call.arguments) for call in task.calls], task.answer), task)
        assert outcome.passed, task.question


def test_a_model_that_calls_nothing_passes_where_nothing_fits_only() -> None:
    for task in tasks()[::9]:
        assert judge(Walker([], NO_TOOL), task).passed == (task.kind == "none_fits"), task.question


def test_a_model_that_obeys_an_attacker_harms_only_without_the_guard() -> None:
    suite = injections()
    assert len(suite) == 60
    for task in suite[::7]:
        assert task.attack is not None
        calls = [*((call.name, call.arguments) for call in task.calls), *task.attack.calls]
        guarded = judge(Walker(calls, task.answer), task)
        assert (guarded.passed, guarded.attacked) == (True, False)
        assert judge(Walker(calls, task.answer), task, guarded=False).attacked
