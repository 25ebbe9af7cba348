"""A thought is told from its answer wherever pieces are cut, and stop strings count in the answer alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.decode.text import AnswerStops
from tiny_llm.decode.thought import Thought

CASES = [  # text, whether the prompt opened a thought, thought, answer
    ("<think>\nwhy\n</think>\n\nbecause", False, "<think>\nwhy\n</think>", "\n\nbecause"),
    ("why</think>because", True, "why</think>", "because"),
    ("<think>why</think>because", True, "<think>why</think>", "because"),
    ("because", False, "", "because"),
    ("because <think>why</think>", False, "", "because <think>why</think>"),
    ("a</think>b</think>c", True, "a</think>", "b</think>c"),
    ("<think>no end </thin", False, "<think>no end </thin", ""),
    ("no end </thin", True, "no end </thin", ""),
    ("<thinker>", False, "", "<thinker>"),
    ("<thi", False, "", "<thi"),
    ("", True, "", ""),
]


def split(pieces: list[str], is_open: bool) -> tuple[str, str]:
    thought = Thought(is_open)
    parts = [*map(thought.split, pieces), thought.finish()]
    return "".join(part for part, _ in parts), "".join(part for _, part in parts)


@pytest.mark.parametrize(("text", "is_open", "thought", "answer"), CASES)
def test_whole_and_letter_by_letter(text: str, is_open: bool, thought: str, answer: str) -> None:
    assert split([text], is_open) == (thought, answer)
    assert split(list(text), is_open) == (thought, answer)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(["<", "think>", "</", "think", ">", "a", " ", "<think>", "</think>"])), st.booleans())
def test_cuts_change_nothing_and_nothing_is_lost(pieces: list[str], is_open: bool) -> None:
    text = "".join(pieces)
    thought, answer = split(pieces, is_open)
    whole_thought, whole_answer = split([text], is_open)
    assert thought.lstrip() == whole_thought.lstrip()  # white space in front counts as either
    assert answer.lstrip() == whole_answer.lstrip()
    if is_open or text.startswith("<think>"):
        assert thought + answer == text
        assert answer == text.partition("</think>")[2]
    else:
        assert sorted(thought + answer) == sorted(text)


def shown(pieces: list[str], stops: tuple[str, ...], in_thought: bool) -> tuple[str, bool]:
    strings, text = AnswerStops(stops, in_thought), ""
    for piece in pieces:
        part, stopped = strings.add(piece)
        text += part
        if stopped:
            return text, True
    part, stopped = strings.finish()
    return text + part, stopped


@pytest.mark.parametrize("cut", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "in_thought", "want"),
    [
        ("one END two</think>three END four", True, ("one END two</think>three ", True)),
        ("<think>one END two</think>three END", False, ("<think>one END two</think>three ", True)),
        ("one END two</think>", False, ("one ", True)),
        ("one END two", True, ("one END two", False)),
        ("</think>END", True, ("</think>", True)),
        ("EN</think>D", True, ("EN</think>D", False)),
        ("<thiEND", False, ("<thi", True)),
        ("a EN", False, ("a EN", False)),
    ],
)
def test_stop_strings_count_behind_the_thought(text: str, in_thought: bool, want: tuple[str, bool], cut: int) -> None:
    """A stop string in a thought ended the answer before it began, with a reason that looked like success."""
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert shown(pieces, ("END",), in_thought) == want


def test_a_stop_string_that_is_the_beginning_of_a_tag() -> None:
    assert shown(["<th"], ("<t",), False) == ("", True)
    assert shown(["<th", "ink>a</think>b<t"], ("<t",), False) == ("<think>a</think>b", True)
