"""Tool calls and thoughts with the openai client."""

import json
from pathlib import Path

import openai
import pytest

from tests.server.conftest import Running, serving
from tests.support import make_model
from tiny_llm.server.models import ModelSpec

NOTE = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {"level": {"type": "integer", "minimum": 0, "maximum": 9}, "loud": {"type": "boolean"}},
            "required": ["level", "loud"],
            "additionalProperties": False,
        },
    },
}
TIME = {
    "type": "function",
    "function": {"name": "time", "parameters": {"type": "object", "additionalProperties": False}},
}
ASK = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "temperature": 1.0}
NO_THOUGHT = {"chat_template_kwargs": {"enable_thinking": False}}


def check_note(call: object) -> None:
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"level", "loud"} and 0 <= arguments["level"] <= 9


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_is_well_formed(tiny: Running, seed: int) -> None:
    create = tiny.client().chat.completions.create
    asked = {**ASK, "tools": [NOTE, TIME], "tool_choice": "required", "seed": seed, "parallel_tool_calls": False}
    found = create(**asked, extra_body=NO_THOUGHT)
    (call,) = found.choices[0].message.tool_calls
    assert found.choices[0].finish_reason == "tool_calls" and found.choices[0].message.content is None
    assert call.function.name in ("note", "time") and call.type == "function" and call.id.startswith("call_")
    if call.function.name == "note":
        check_note(call)
    streamed = create(**asked, extra_body=NO_THOUGHT, stream=True)
    pieces = [choice for chunk in streamed for choice in chunk.choices]
    calls = [one for piece in pieces for one in piece.delta.tool_calls or ()]
    assert [one.function.name for one in calls if one.function.name] == [call.function.name]
    assert sum(one.id is not None for one in calls) == 1
    assert "".join(one.function.arguments or "" for one in calls) == call.function.arguments
    assert pieces[-1].finish_reason == "tool_calls"


def test_a_named_tool_is_called(tiny: Running) -> None:
    choice = {"type": "function", "function": {"name": "note"}}
    found = tiny.client().chat.completions.create(
        **ASK, tools=[NOTE, TIME], tool_choice=choice, parallel_tool_calls=False, extra_body=NO_THOUGHT
    )
    (call,) = found.choices[0].message.tool_calls
    assert call.function.name == "note"
    check_note(call)


def test_no_tool_is_called_where_none_is_asked_for(tiny: Running) -> None:
    found = tiny.client().chat.completions.create(
        **{**ASK, "max_tokens": 20}, tools=[NOTE], tool_choice="none", extra_body=NO_THOUGHT
    )
    assert found.choices[0].message.tool_calls is None


def test_a_conversation_with_results(tiny: Running) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "note", "arguments": '{"level": 1, "loud": true}'}}
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "note "}, {"type": "text", "text": "it"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
        {"role": "system", "content": "Now answer."},
    ]
    found = tiny.client().chat.completions.create(**{**ASK, "messages": messages, "max_tokens": 4}, tools=[NOTE])
    assert found.usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    ],
)
def test_what_does_not_fit_is_refused(tiny: Running, fields: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        tiny.client().chat.completions.create(**{**ASK, "tools": [NOTE], **fields})
    assert error.value.param == param


def test_a_model_without_a_form_for_calls(tmp_path: Path) -> None:
    path = make_model(tmp_path / "plain")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    with serving(ModelSpec("plain", str(path))) as running, pytest.raises(openai.UnprocessableEntityError) as error:
        running.client().chat.completions.create(**{**ASK, "model": "plain"}, tools=[NOTE])
    assert error.value.body["code"] == "unsupported_by_model"


def test_the_thought_stands_apart(pocket: Running) -> None:
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    create = pocket.client().chat.completions.create
    on = {"chat_template_kwargs": {"enable_thinking": True}}
    asked = {"model": "pocket", "messages": messages, "temperature": 0, "max_tokens": 300}
    found = create(**asked, extra_body=on)
    message = found.choices[0].message
    assert "<think>" not in message.content and "</think>" not in message.content
    thought = message.model_extra.get("reasoning", "")
    assert message.model_extra.get("reasoning_content", "") == thought
    assert (found.usage.completion_tokens_details.reasoning_tokens > 0) == bool(thought)
    content = streamed = ""
    for chunk in create(**asked, extra_body=on, stream=True):
        delta = chunk.choices[0].delta
        content += delta.content or ""
        streamed += (delta.model_extra or {}).get("reasoning") or ""
    assert (content, streamed) == (message.content, thought)


def test_the_thought_has_a_budget(tiny: Running) -> None:
    """A random model thinks for ever; the budget closes the thought, and the answer follows."""
    body = {"thinking_budget": 10, "ignore_eos": True, "chat_template_kwargs": {"enable_thinking": True}}
    messages = [{"role": "user", "content": "hello"}]
    found = tiny.client().chat.completions.create(model="tiny", messages=messages, max_tokens=60, extra_body=body)
    assert found.usage.completion_tokens_details.reasoning_tokens <= 10
