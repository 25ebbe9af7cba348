"""Malformed messages, tools and calls are named; what clients send in several forms means the same."""

import json
from typing import Any

import pytest

from tests.support import FIXTURES, make_tokenizer
from tiny_llm.model.tokenizer import Tokenizer

USER = {"role": "user", "content": "?"}


def tokenizer(template: str = "qwen2.5.jinja") -> Tokenizer:
    file = FIXTURES / template
    text = file.read_text(encoding="utf-8") if template.endswith(".jinja") else template
    return Tokenizer(make_tokenizer(), frozenset(), {"default": text})


def calling(arguments: Any, **function: Any) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments, **function}}
    return [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]


@pytest.mark.parametrize("template", ["qwen2.5.jinja", "qwen3.jinja"])
@pytest.mark.parametrize("value", [{"city": "Bern", "days": [1, 2.5, None, True]}, {}, {"a": {"b": "ü<"}}])
def test_arguments_as_json_text_are_those_as_an_object(template: str, value: dict[str, Any]) -> None:
    """The protocol sends a JSON text, which templates that use tojson quoted a second time."""
    expected = tokenizer(template).render(calling(value))
    for text in (json.dumps(value), json.dumps(value, indent=2), json.dumps(value, ensure_ascii=False)):
        assert tokenizer(template).render(calling(text)) == expected


@pytest.mark.parametrize("nothing", ["", None, "{}"])
def test_no_arguments_are_an_empty_object(nothing: Any) -> None:
    assert tokenizer().render(calling(nothing)) == tokenizer().render(calling({}))


@pytest.mark.parametrize(
    "arguments", ["Bern", "[1]", "3", '"{}"', '{"a": NaN}', '{"a": 1e999}', '{"a": ', "[" * 10**5, [1], 3, b"{}", True]
)
def test_arguments_that_are_no_object_are_named(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"^messages\[1\]\.tool_calls\[0\]\.function\.arguments"):
        tokenizer().render(calling(arguments))


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ("x", r"messages\[1\]\.tool_calls: expected a list of calls, found 'x'"),
        ({"function": {}}, r"messages\[1\]\.tool_calls: expected a list"),
        ([3], r"messages\[1\]\.tool_calls\[0\]: expected a function's name and arguments, found 3"),
        ([{}], r"messages\[1\]\.tool_calls\[0\]\.name: expected the name of a function, found None"),
        ([{"function": "f"}], r"messages\[1\]\.tool_calls\[0\]\.function: expected name and arguments, found 'f'"),
        ([{"function": {"name": 3}}], r"messages\[1\]\.tool_calls\[0\]\.function\.name: .*found 3"),
        ([{"function": {"name": ""}}], r"messages\[1\]\.tool_calls\[0\]\.function\.name: "),
    ],
)
def test_a_malformed_call_is_named(calls: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().render([USER, {"role": "assistant", "content": "", "tool_calls": calls}])


@pytest.mark.parametrize("template", ["qwen2.5.jinja", "qwen3.jinja"])
def test_null_calls_are_none(template: str) -> None:
    """Clients send every field of an earlier answer, those that are null as well."""
    answer = {"role": "assistant", "content": "hi"}
    nulls = {"tool_calls": None, "refusal": None, "function_call": None, "reasoning_content": None, "name": None}
    assert tokenizer(template).render([USER, {**answer, **nulls}]) == tokenizer(template).render([USER, answer])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("x", r"tools: expected a list of tools, found 'x'"),
        ({"function": {}}, r"tools: expected a list"),
        ([len], r"tools\[0\]: expected a function's name and parameters, found <built-in"),
        ([{}], r"tools\[0\]\.name: expected the name of a function, found None"),
        ([{"type": "function"}], r"tools\[0\]\.name"),
        ([{"function": 3}], r"tools\[0\]\.function: expected name and parameters, found 3"),
        ([{"function": {"name": "f", "parameters": []}}], r"tools\[0\]\.function\.parameters: expected a JSON schema"),
        ([{"function": {"name": "f", "x": {1: 2}}}], r"tools\[0\]\.function\.x: expected texts as keys, found 1"),
        ([{"function": {"name": "f", "x": float("nan")}}], r"tools\[0\]\.function\.x: expected a finite number"),
        ([{"function": {"name": "f", "x": [{1}]}}], r"tools\[0\]\.function\.x\[0\]: expected text, numbers"),
        ([{"function": {"name": "f", "description": "\ud800"}}], r"tools\[0\]\.function\.description: .*surrogate"),
        ([{"function": {"name": "f", "\udfff": 1}}], r"tools\[0\]\.function: key .*surrogate U\+DFFF"),
    ],
)
def test_a_malformed_tool_is_named(tools: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().render([USER], tools)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hi", r"messages\[0\]: content: expected a text, found b'hi'"),
        (3.5, r"messages\[0\]: content: expected a text, found 3.5"),
        ([], r"messages\[0\]: content: expected a text, found \[\]"),
        ({"type": "text", "text": "hi"}, r"messages\[0\]: content: expected a text, found \{"),
        ("a\ud83d", r"messages\[0\]: content: .*half a character \(the surrogate U\+D83D\) at character 1"),
        ([{"type": "text", "text": "\udc00"}], r"messages\[0\]: content: .*surrogate U\+DC00"),
        (["hi"], r"messages\[0\]: content\[0\]: expected .*found 'hi'"),
        ([{"type": "text"}], r"messages\[0\]: content\[0\]: expected"),
        ([{"type": "text", "text": 3}], r"messages\[0\]: content\[0\]: expected"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}], r"content\[1\]: .*found a part of type 'image_url'"),
    ],
)
def test_content_that_is_no_text_is_named(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer().render([{"role": "user", "content": content}])


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    expected = tokenizer().render([{"role": "user", "content": "a b"}])
    assert tokenizer().render([{"role": "user", "content": parts}]) == expected


def test_other_fields_and_their_order_reach_the_template() -> None:
    message = {"name": "n", "role": "user", "content": "c", "x": {"b": 1, "a": [None]}}
    assert json.loads(tokenizer("{{ messages[0] | tojson }}").render([message])) == message
    assert tokenizer("{{ messages[0] | tojson }}").render([message]) == json.dumps(message)


@pytest.mark.parametrize("name", ["messages", "tools_", "x"])
def test_settings_of_the_template_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        tokenizer().render([USER], **{name: object()})


def test_structures_without_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    wide: Any = "x"
    for _ in range(60):
        wide = [wide, wide]
    for value in (endless, wide):
        with pytest.raises(ValueError, match=r"messages\[0\]\.x"):
            tokenizer().render([{**USER, "x": value}])
