"""Tool calls are found in both forms, wherever the text is cut; what fails to parse is content."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.decode.reply import AnswerPart, CallArguments, CallBegin, Content, Reasoning, Reply
from tiny_llm.decode.tool_calls import CallForm, ToolCallParser, call_form
from tiny_llm.decode.tool_values import tool_schemas, types_of, value_of

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": "number"},
        "flag": {"type": "boolean"},
        "items": {"type": "array"},
        "place": {"$ref": "#/$defs/Place"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "either": {"type": ["string", "null"]},
        "level": {"enum": [1, 2]},
    },
    "$defs": {"Place": {"type": "object"}},
}
TOOLS = [
    {"type": "function", "function": {"name": "note", "parameters": SCHEMA}},
    {"name": "clock"},
]
Result = tuple[str, str, list[tuple[str, str]]]  # thought, content, calls


def parser(form: CallForm, constrained: bool = False) -> ToolCallParser:
    return ToolCallParser(form, tool_schemas(TOOLS), constrained)


def parts_of(pieces: list[str], reply: Reply) -> list[AnswerPart]:
    parts = [part for piece in pieces for part in reply.feed(piece)]
    return parts + reply.finish()


def joined(parts: list[AnswerPart]) -> Result:
    """The thought, the content and the calls of the parts, whose order is checked."""
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
    content = "".join(part.text for part in parts if isinstance(part, Content))
    calls: list[tuple[str, str]] = []
    for part in parts:
        if isinstance(part, CallBegin):
            assert part.index == len(calls)
            calls.append((part.name, ""))
        elif isinstance(part, CallArguments):
            assert part.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
    assert all(getattr(part, "text", "-") for part in parts)
    return thought, content, calls


def read(text: str, form: CallForm, constrained: bool = False, length: int = 0) -> Result:
    pieces = [text[i : i + length] for i in range(0, len(text), length)] if length else [text]
    return joined(parts_of(pieces, Reply(False, parser(form, constrained))))


def hermes(name: str, arguments: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


def xml(name: str, parameters: dict[str, str]) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


NO_CALLS: list[tuple[str, str]] = []
HERMES_CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    (hermes("clock", {}), "", [("clock", "{}")]),
    ("Let me see.\n" + hermes("clock", {}), "Let me see.", [("clock", "{}")]),
    (hermes("a", {"x": 1}) + "\n" + hermes("b", {"y": [2]}), "", [("a", '{"x": 1}'), ("b", '{"y": [2]}')]),
    (hermes("a", {"x": 1}) + " and \n", "", [("a", '{"x": 1}')]),
    (hermes("note", {"text": "Größe \u20ac"}), "", [("note", '{"text": "Größe \u20ac"}')]),
    ('<tool_call>{"name":"a","arguments":{"x":1}}</tool_call>', "", [("a", '{"x": 1}')]),
    ('<tool_call>{"arguments": {"x": 1e2}, "name": "a"}', "", [("a", '{"x": 100.0}')]),
    ('<tool_call>{"name": "clock"}</tool_call>', "", [("clock", "{}")]),
    ("no call  \n", "no call  \n", NO_CALLS),
    ("a <tool_ca", "a <tool_ca", NO_CALLS),
    ("a <tool_call", "a <tool_call", NO_CALLS),
    ("a \n<tool_call>", "a \n<tool_call>", NO_CALLS),
    ("a </tool_call> b", "a </tool_call> b", NO_CALLS),
    ('<tool_call>{"name": "a", "arguments": {"x": 1', '<tool_call>{"name": "a", "arguments": {"x": 1', NO_CALLS),
]
BROKEN = [
    "{not json}",
    "[]",
    '"text"',
    "7",
    "{}",
    '{"name": 7, "arguments": {}}',
    '{"name": "", "arguments": {}}',
    '{"name": "a", "arguments": [1]}',
    '{"name": "a", "arguments": "{}"}',
    '{"name": "a", "arguments": {"x": NaN}}',
    '{"name": "a", "arguments": {"x": 1e400}}',
    '{"name": "a", "arguments": {"x": "\\ud800"}}',
    '{"name": "\\ud800", "arguments": {}}',
    '{"name": "a", "arguments": {"x": ' + "[" * 100_000,
    '{"name": "a", "arguments": {"x": "</tool_call>"}}',
]


@pytest.mark.parametrize(("text", "content", "calls"), HERMES_CASES)
@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_hermes_calls(text: str, content: str, calls: list[tuple[str, str]], length: int) -> None:
    assert read(text, CallForm.HERMES, length=length) == ("", content, calls)


@pytest.mark.parametrize("body", BROKEN)
def test_a_call_that_fails_to_parse_is_content_with_all_behind_it(body: str) -> None:
    text = f"First.\n<tool_call>{body}</tool_call>\n" + hermes("clock", {})
    assert read(text, CallForm.HERMES) == ("", text, [])
    before = hermes("clock", {}) + "\n"
    assert read(before + text, CallForm.HERMES) == ("", text.removeprefix("First.\n"), [("clock", "{}")])


XML_CASES: list[tuple[str, str, list[tuple[str, str]]]] = [
    (xml("clock", {}), "", [("clock", "{}")]),
    ("Well.\n\n" + xml("note", {"text": "a\nb"}), "Well.", [("note", '{"text": "a\\nb"}')]),
    (xml("note", {"text": "7", "count": "7"}), "", [("note", '{"text": "7", "count": 7}')]),
    (xml("note", {"count": "7.0", "ratio": "7"}), "", [("note", '{"count": 7, "ratio": 7}')]),
    (xml("note", {"count": "seven", "ratio": "1e400"}), "", [("note", '{"count": "seven", "ratio": "1e400"}')]),
    (xml("note", {"flag": "True"}) + xml("note", {"flag": "false"}), "",
     [("note", '{"flag": true}'), ("note", '{"flag": false}')]),
    (xml("note", {"items": "[1, \"é\"]", "place": '{"x": {}}'}), "",
     [("note", '{"items": [1, "é"], "place": {"x": {}}}')]),
    (xml("note", {"maybe": "null", "either": "None", "level": "2"}), "",
     [("note", '{"maybe": null, "either": null, "level": 2}')]),
    (xml("note", {"either": '"quoted"', "other": "5"}), "", [("note", '{"either": "\\"quoted\\"", "other": "5"}')]),
    (xml("unknown", {"x": "1"}), "", [("unknown", '{"x": "1"}')]),
    ("<function=note>\n<parameter=text>\n a \n</parameter>\n</function>", "", [("note", '{"text": " a "}')]),
    ("<function=note><parameter=text>a<parameter=count>2</function>", "", [("note", '{"text": "a", "count": 2}')]),
    ("<tool_call>\n<function=clock>\n</function>", "", [("clock", "{}")]),
    ("a <func", "a <func", NO_CALLS),
    ("a <function=f>\n<parameter=x>\n1", "a <function=f>\n<parameter=x>\n1", NO_CALLS),
    ("<tool_call>\n<function=f>\nwhat\n</function>\n</tool_call>\n",
     "<tool_call>\n<function=f>\nwhat\n</function>\n</tool_call>\n", NO_CALLS),
    ('<tool_call>{"name": "a"}</tool_call>', '<tool_call>{"name": "a"}</tool_call>', NO_CALLS),
]  # fmt: skip


@pytest.mark.parametrize(("text", "content", "calls"), XML_CASES)
@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_xml_calls(text: str, content: str, calls: list[tuple[str, str]], length: int) -> None:
    assert read(text, CallForm.XML, length=length) == ("", content, calls)


PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<function=note>",
    "</function>",
    "<parameter=text>",
    "</parameter>",
    "<think>",
]
PIECES += [
    "</think>",
    "<parameter=count>",
    '{"name": "a", "arguments": {',
    '"x": "\\"}{"',
    "}}",
    "}",
    "\n",
    "<",
    "a",
    "7",
]
PIECES += [hermes("note", {"text": '}\\{"'}), xml("note", {"count": "7"})]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(TEXTS, st.sampled_from(CallForm), st.booleans(), st.booleans())
def test_every_cut_gives_the_same_result(text: str, form: CallForm, constrained: bool, in_thought: bool) -> None:
    def result(pieces: list[str]) -> Result:
        return joined(parts_of(pieces, Reply(in_thought, parser(form, constrained))))

    whole = result([text])
    assert result(list(text)) == whole
    for cut in range(len(text)):
        assert result([text[:cut], text[cut:]]) == whole


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_arguments_come_through_a_constrained_parser_as_they_were_written(value: Any) -> None:
    text = hermes("note", {"value": value})
    if "</tool_call>" in json.dumps(value):
        return
    for length in (1, 3, len(text)):
        _, content, calls = read(text, CallForm.HERMES, constrained=True, length=length)
        assert (content, calls) == ("", [("note", json.dumps({"value": value}))])


def test_constrained_arguments_come_while_they_are_generated() -> None:
    calls = parser(CallForm.HERMES, constrained=True)
    assert calls.feed('<tool_call>\n{"name": "note", "argu') == []
    assert calls.feed('ments": {"te') == [CallBegin(0, "note"), CallArguments(0, '{"te')]
    assert calls.feed('xt": "}</tool_call>') == [CallArguments(0, 'xt": "}</tool_call>')]
    assert calls.feed('"}}\n</tool') == [CallArguments(0, '"}')]
    assert calls.feed('_call>\n<tool_call>\n{"name": "clock", "arguments": {}}') == [
        CallBegin(1, "clock"),
        CallArguments(1, "{}"),
    ]
    assert calls.finish() == []


def test_constrained_parameters_come_one_at_a_time() -> None:
    calls = parser(CallForm.XML, constrained=True)
    assert calls.feed("<tool_call>\n<function=note>\n<parameter=text>\na") == [CallBegin(0, "note")]
    assert calls.feed("\n</parameter>\n<parameter=count>\n7") == [CallArguments(0, '{"text": "a"')]
    assert calls.feed("\n</parameter>\n</function>") == [CallArguments(0, ', "count": 7}')]
    assert calls.feed("\n</tool_call>") == []


@settings(max_examples=60, deadline=None, derandomize=True)
@given(TEXTS)
def test_a_constrained_text_gives_the_calls_of_a_free_one(text: str) -> None:
    made = f"Yes.\n{xml('note', {'text': text, 'count': '7'})}"
    if any(tag in text for tag in ("</parameter>", "<parameter=", "</function>", "</tool_call>")):
        return
    assert read(made, CallForm.XML, constrained=True) == read(made, CallForm.XML)


def test_an_unconstrained_call_is_held_until_it_is_whole() -> None:
    calls = parser(CallForm.HERMES)
    assert calls.feed('Yes. \n<tool_call>\n{"name": "clock", "arguments": {}}\n') == [Content("Yes.")]
    assert calls.feed("</tool_call>") == [CallBegin(0, "clock"), CallArguments(0, "{}")]


def test_only_what_can_begin_a_tag_is_held_back() -> None:
    calls = parser(CallForm.HERMES)
    assert calls.feed("a <b") == [Content("a <b")]
    assert calls.feed(" </tool") == [Content(" </tool")]
    assert calls.feed("<tool_") == []
    assert calls.feed("box>") == [Content("<tool_box>")]


def test_a_call_in_the_thought_is_thought() -> None:
    text = f"so {hermes('clock', {})}\n</think>\n\n{hermes('clock', {})}"
    parts = parts_of(list(text), Reply(True, parser(CallForm.HERMES)))
    assert joined(parts) == (f"so {hermes('clock', {})}\n", "", [("clock", "{}")])
    kinds = [kind for kind, _ in groupby(map(type, parts))]
    assert kinds == [Reasoning, CallBegin, CallArguments]


@pytest.mark.parametrize(
    ("template", "form"), [("qwen3", CallForm.HERMES), ("llama3", None), ("qwen2.5", CallForm.HERMES)]
)
def test_the_template_shows_the_form(template: str, form: CallForm | None) -> None:
    text = (FIXTURES / f"{template}.jinja").read_text(encoding="utf-8")
    assert call_form({"default": text}) is form


def test_the_template_for_tools_counts() -> None:
    texts = {"default": "<tool_call>", "tool_use": "<tool_call>\n<function=example>"}
    assert call_form(texts) is CallForm.XML
    assert call_form({}) is None


def test_a_schema_that_leads_to_itself_costs_no_time() -> None:
    """Each level of references doubled the work."""
    option = {"$ref": "#/$defs/Tree"}
    root = {"$defs": {"Tree": {"anyOf": [option] * 50 + [{"type": "integer"}]}}}
    assert types_of(option, root) == {"integer"}
    assert value_of("7", option, root) == 7


@pytest.mark.parametrize("schema", [5, None, {"type": 5}, {"enum": 5}, {"anyOf": 5}, {"$ref": 5}, {"$ref": "#/no"}, {}])
def test_a_schema_without_sense_takes_text(schema: Any) -> None:
    assert value_of("7", schema, {}) == "7"
