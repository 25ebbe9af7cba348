"""Sessions of three coding clients, written from the public formats: the prefix cache finds what it could.

What a request could reuse is the longest prefix that its prompt has in common with the tokens of an earlier turn,
prompt and answer, in whole blocks, and without the prompt's last token, which must be computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import pytest

from tests.server.conftest import SERVING, Running, serving
from tests.support import make_model
from tiny_llm.server.models import ModelSpec

TURNS = 6
SYSTEM = "You are a coding agent in a terminal. Read before you write, and test what you wrote. " * 3
PATH = {"type": "string", "enum": ["a.py", "b.py"]}
SCHEMAS = {
    "write": {"type": "object", "properties": {"path": PATH, "line": {"type": "integer", "minimum": 0, "maximum": 99}}},
    "read": {"type": "object", "properties": {"path": PATH}},
}
for schema in SCHEMAS.values():
    schema |= {"required": list(schema["properties"]), "additionalProperties": False}
SHORT_THOUGHT = {"thinking_budget": 20, "temperature": 1.0}  # a random model would think for ever
RESULT = "The file has {0} lines; line {0} was changed."


@dataclass
class Session:
    """What the engine saw: each turn's prompt and answer as tokens, and what of the prompt was cached."""

    prompts: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    def possible(self) -> int:
        """The prompt tokens that all turns could have reused."""
        block = SERVING.block_size
        total = 0
        for turn, prompt in enumerate(self.prompts):
            longest = 0
            for before in range(turn):
                known = self.prompts[before] + self.answers[before][:-1]  # the last token was never computed
                longest = max(longest, common(known, prompt[:-1]))
            total += longest // block * block
        return total


def common(left: list[int], right: list[int]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=16_384)


@pytest.fixture
def served(long_path: Path, tmp_path: Path) -> Iterator[Running]:
    with serving(ModelSpec("coder", str(long_path))) as running:
        yield running


@pytest.fixture
def session(served: Running, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Records the requests that reach the engine, and the tokens of their answers."""
    seen = Session()
    engine = served.models.first.engine
    astream = engine.astream

    def recorded(*arguments: Any, **options: Any) -> Any:
        stream = astream(*arguments, **options)
        prompt = engine.llm.tokenizer.render(arguments[0], **options["template"])
        seen.prompts.append(engine.llm.tokenizer.encode(prompt))
        streams.append(stream)
        return stream

    streams: list[Any] = []
    monkeypatch.setattr(engine, "astream", recorded)
    seen.streams = streams
    return seen


def finish(session: Session) -> tuple[int, int]:
    """Return the prompt tokens that were reused, and those that could have been."""
    for stream in session.streams:
        session.answers.append([delta.token for delta in stream.collected.answers[0]])
        session.cached.append(stream.collected.cached_tokens)
    assert len(session.prompts) == TURNS
    return sum(session.cached), session.possible()


def anthropic_session(served: Running) -> None:
    """The system prompt's head has a line that changes with every request; a reminder comes in the middle."""
    client = anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0)
    tools = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    cached = {"cache_control": {"type": "ephemeral"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "Fix a.py.", **cached}]}]
    for turn in range(TURNS):
        billing = f"x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli; cch={turn * 7919:05x};"
        system = [{"type": "text", "text": billing}, {"type": "text", "text": SYSTEM, **cached}]
        with client.messages.stream(
            model="coder",
            max_tokens=200,
            thinking={"type": "enabled", "budget_tokens": 20},
            system=system,
            messages=messages,
            tools=tools,
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
            metadata={"user_id": "user_1"},
            extra_body={"temperature": 1.0, "seed": turn, "context_management": {"edits": []}},
        ) as stream:
            answer = stream.get_final_message()
        messages.append({"role": "assistant", "content": answer.content})
        (call,) = [block for block in answer.content if block.type == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": RESULT.format(turn)}
        messages.append({"role": "user", "content": [result, {"type": "text", "text": "Go on.", **cached}]})
        if turn == 2:
            messages.append({"role": "system", "content": "The user changed b.py."})


def responses_session(served: Running) -> None:
    """All items go back with each request, and nothing is stored."""
    client = served.client()
    tools = [{"type": "function", "name": n, "parameters": s, "strict": True} for n, s in SCHEMAS.items()]
    items: list[Any] = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Sandbox: read-only."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix a.py."}]},
    ]
    for turn in range(TURNS):
        stream = client.responses.create(
            model="coder",
            instructions=SYSTEM,
            input=items,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            reasoning={"effort": "low", "summary": "auto"},
            store=False,
            stream=True,
            include=["reasoning.encrypted_content"],
            prompt_cache_key="session-1",
            extra_body={**SHORT_THOUGHT, "max_output_tokens": 200, "seed": turn, "client_metadata": {"a": str(turn)}},
        )
        done = [event.item for event in stream if event.type == "response.output_item.done"]
        items += [{key: value for key, value in item.model_dump().items() if value is not None} for item in done]
        items.append({"type": "function_call_output", "call_id": done[-1].call_id, "output": RESULT.format(turn)})


def chat_session(served: Running) -> None:
    """Streamed calls are put together by their index, and go back with the results."""
    client = served.client()
    tools = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in SCHEMAS.items()]
    messages: list[dict[str, Any]] = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Fix a.py."}]
    for turn in range(TURNS):
        stream = client.chat.completions.create(
            model="coder",
            messages=messages,
            tools=tools,
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=200,
            seed=turn,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=SHORT_THOUGHT,
        )
        thought = ""
        call: dict[str, Any] = {}
        for chunk in stream:
            for choice in chunk.choices:
                thought += (choice.delta.model_extra or {}).get("reasoning_content") or ""
                for piece in choice.delta.tool_calls or ():
                    function = call.setdefault("function", {"name": piece.function.name, "arguments": ""})
                    function["arguments"] += piece.function.arguments
                    call.setdefault("id", piece.id)
        message = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", **call}]}
        messages.append({**message, "reasoning_content": thought} if thought else message)
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": RESULT.format(turn)})


@pytest.mark.parametrize("play", [anthropic_session, responses_session, chat_session])
def test_a_session_reuses_what_it_could(served: Running, session: Session, play: Callable[[Running], None]) -> None:
    play(served)
    reused, possible = finish(session)
    assert possible > 0.7 * sum(map(len, session.prompts[1:]))  # the conversation itself only grows
    assert reused >= 0.99 * possible
    assert reused == possible, (session.cached, [len(prompt) for prompt in session.prompts])


def test_tools_are_rendered_in_the_order_given(served: Running, session: Session) -> None:
    """Sorting them would save nothing, and would change the prefix of a client that appends a tool."""
    for names in (["write", "read"], ["read", "write"]):
        tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMAS[name]}} for name in names]
        messages = [{"role": "user", "content": "hello"}]
        served.client().chat.completions.create(model="coder", messages=messages, tools=tools, max_tokens=1)
        text = served.models.first.engine.llm.tokenizer.decode(session.prompts[-1])
        assert text.index(f'"{names[0]}"') < text.index(f'"{names[1]}"')
        assert text.index('"path"') < text.index('"line"')  # and parameters, too
