"""A thought is told from the answer however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.fake import FakeLLM
from tiny_llm.cli.generate import show_text
from tiny_llm.decode.reply import Content, Reasoning, Reply

CASES = [
    ("<think>\nwhy\n</think>\n\nbecause", False, "why\n", "because"),
    ("\n<think>why</think>because", False, "why", "because"),
    ("<think>\n\n</think>\n\nanswer", False, "", "answer"),
    ("why\n</think>\n\nbecause", True, "why\n", "because"),
    ("<think>unfinished </thi", False, "unfinished </thi", ""),
    ("plain <think>text</think>", False, "", "plain <think>text</think>"),
    ("<thinker", False, "", "<thinker"),
    ("<thi", False, "", "<thi"),
    ("  indented", False, "", "  indented"),
    ("a </think> b", False, "", "a </think> b"),
    ("<think>a</think>b</think>c", False, "a", "b</think>c"),
    ("<think>a </ b </think>c", False, "a </ b ", "c"),
    ("", False, "", ""),
]


def split(pieces: list[str], in_thought: bool) -> tuple[str, str]:
    reply = Reply(in_thought)
    parts = [part for piece in pieces for part in reply.feed(piece)] + reply.finish()
    thought = "".join(part.text for part in parts if isinstance(part, Reasoning))
    return thought, "".join(part.text for part in parts if isinstance(part, Content))


@pytest.mark.parametrize(("text", "thinking", "thought", "answer"), CASES, ids=[repr(case[0]) for case in CASES])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 100])
def test_pieces_of_any_length(text: str, thinking: bool, thought: str, answer: str, length: int) -> None:
    pieces = [text[i : i + length] for i in range(0, len(text), length)]
    assert split(pieces, thinking) == (thought, answer)


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "think>", " ", "\n", "a", "b<"])),
    st.booleans(),
)
def test_the_pieces_make_no_difference(pieces: list[str], thinking: bool) -> None:
    assert split(pieces, thinking) == split(["".join(pieces)], thinking)


def test_text_that_cannot_be_a_tag_is_not_held_back() -> None:
    reply = Reply(True)
    assert reply.feed("so </b") == [Reasoning("so </b")]
    assert reply.feed(" and </") == [Reasoning(" and ")]


@pytest.mark.parametrize("asked", ["hi", "what does <think> mean?"])
@pytest.mark.parametrize("opens", [False, True])
def test_a_tag_in_the_question_does_not_hide_the_answer(
    asked: str, opens: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """An answer to a question that contained <think> went to stderr as a thought."""
    template = {"prefill": "<think>"} if opens else {}
    request = [{"role": "user", "content": asked}]
    show_text(FakeLLM(), request, template, ["so</think>", "yes"])  # type: ignore[arg-type]
    assert capsys.readouterr().out == ("yes\n" if opens else "so</think>yes\n")
