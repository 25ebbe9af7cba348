"""The built-in tools and the passage format: what the files say, and errors that name the file and the key."""

import pytest

from tiny_llm.config.prompts import (
    Passage,
    builtin_tools,
    parse_passages,
    parse_tools,
    passage_format,
)

NAMES = "calculator clock read_file search_files edit_file write_file run_python search_documents"
TOOL = """
system = "Help."
failed = "Error: {message}"
[[tool]]
name = "look"
description = "Look."
required = ["at"]
result = "{text}"
empty = ""
failures = ["nothing there"]
[tool.properties]
at = { type = "string" }
"""


def test_the_built_in_tools_are_all_there() -> None:
    assert list(builtin_tools().tools) == NAMES.split()


def test_a_tool_is_a_function_of_the_openai_api() -> None:
    assert builtin_tools().tools["edit_file"].schema == {
        "type": "function",
        "function": {
            "name": "edit_file",
            "description": "Replace a text in a file.",
            "parameters": {
                "type": "object",
                "properties": {
                    "path": {"type": "string"},
                    "old_string": {"type": "string"},
                    "new_string": {"type": "string"},
                },
                "required": ["path", "old_string", "new_string"],
            },
        },
    }


def test_failures_and_results_have_only_the_fields_of_their_tool() -> None:
    own = {"value", "text", "line", "printed", "passages"}
    for tool in builtin_tools().tools.values():
        fields = dict.fromkeys([*tool.properties, *own], "x")
        assert tool.result.format(**fields)
        for message in tool.failures:
            assert "{" not in builtin_tools().failure(message.format(**dict.fromkeys(tool.properties, "x")))


def test_passages_are_numbered_with_title_and_source() -> None:
    passages = [
        Passage("It  opened\nin 1907."),
        Passage("Tall.", title="Bridges"),
        Passage("Old.", source="b.md"),
        Passage("New.", "Bridges", "b.md"),
    ]
    assert passage_format().question(passages, "When?") == (
        "Context:\n[1] It opened in 1907.\n[2] (Bridges) Tall.\n[3] (b.md) Old.\n[4] (Bridges, b.md) New.\n\n"
        "Question: When?"
    )


def test_an_answer_cites_its_passage() -> None:
    assert passage_format().cited("In 1907.", 2) == "In 1907 [2]."


def test_braces_in_a_passage_stay() -> None:
    assert "{x} {0}" in passage_format().question([Passage("{x} {0}")], "What is {y}?")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('"Help."', "3", "t.toml: system: expected a text, found 3"),
        ("{message}", "{text}", "t.toml: failed: expected the fields message, found text"),
        ('"look"', '"Look!"', "t.toml: tool 1: name: expected small letters and _, found 'Look!'"),
        ('"Look."', '"Two\\nlines"', "t.toml: tool 1: description: expected one line"),
        ('["at"]', '["to"]', "t.toml: tool 1: required: expected names out of at, found 'to'"),
        ('"string"', '"text"', "t.toml: tool 1: properties.at.type: expected one of string"),
        ('empty = ""', "", "t.toml: tool 1: empty: missing: add it"),
        ('empty = ""', 'empty = ""\nnote = 1', "t.toml: tool 1: note: unknown key: choose among name"),
        ("[[tool]]", "tool = [", "t.toml: expected TOML, found something else"),
    ],
)
def test_a_faulty_file_of_tools_is_refused(old: str, new: str, error: str) -> None:
    parse_tools(TOOL, "t.toml")
    with pytest.raises(ValueError) as caught:
        parse_tools(TOOL.replace(old, new), "t.toml")
    assert str(caught.value).startswith(error)


def test_two_tools_of_one_name_are_refused() -> None:
    second = TOOL[TOOL.index("[[tool]]") :]
    with pytest.raises(ValueError, match="t.toml: tool 2: name: 'look' is an earlier tool's name"):
        parse_tools(TOOL + second, "t.toml")


def test_a_faulty_passage_format_is_refused() -> None:
    with pytest.raises(ValueError, match="p.toml: system: missing"):
        parse_passages("absent = 'No.'", "p.toml")
    text = "\n".join(f"{key} = '{value}'" for key, value in vars(passage_format()).items()).replace("\\", "")
    text = text.replace("\n\n", " ").replace("Context:\n", "Context: ")
    assert parse_passages(text, "p.toml").absent == passage_format().absent
    with pytest.raises(ValueError, match="p.toml: passage: expected the fields number, text, found text"):
        parse_passages(text.replace("'[{number}] {text}'", "'{text}'"), "p.toml")
