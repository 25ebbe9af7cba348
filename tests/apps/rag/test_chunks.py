"""Chunks: whole units, bounded, with overlap, and nothing lost."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.apps.rag.support import count_words
from tiny_llm.apps.rag.chunks import Chunk, ChunkSettings, chunks_of, merged, units_of
from tiny_llm.apps.rag.readers import Section
from tiny_llm.apps.rag.steps import windows


def characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


@given(st.text(alphabet="ab.! \n", max_size=300), st.integers(2, 40))
@settings(deadline=None)
def test_units_are_the_text_and_bounded(text: str, size: int) -> None:
    units = units_of(text, size, characters)
    assert "".join(unit.text for unit in units) == text
    assert all(0 < unit.length <= size and unit.length == len(unit.text) for unit in units)


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 60), st.integers(0, 30))
def test_windows_cover_everything_and_advance(lengths: list[int], size: int, overlap: int) -> None:
    spans = windows(lengths, size, overlap)
    covered = {unit for begin, end in spans for unit in range(begin, end)}
    assert covered == set(range(len(lengths)))
    for begin, end in spans:
        assert sum(lengths[begin:end]) <= size
    for (first, before), (begin, end) in pairwise(spans):
        assert first < begin <= before < end
        assert sum(lengths[begin:before]) <= overlap


def test_sentences_stay_whole_and_are_shared() -> None:
    text = "One two three. Four five six. Seven eight nine. Ten eleven twelve."
    chunks = chunks_of([Section(text, ("T",))], "a.md", ChunkSettings(16, 8), lambda texts: [4] * len(texts))
    assert [chunk.text for chunk in chunks] == [
        "One two three. Four five six. Seven eight nine. Ten eleven twelve.",
    ]
    chunks = chunks_of([Section(text, ("T",))], "a.md", ChunkSettings(16, 8), lambda texts: [8] * len(texts))
    assert [chunk.text for chunk in chunks] == [
        "One two three. Four five six.",
        "Four five six. Seven eight nine.".replace("Four", " Four"),
        "Seven eight nine. Ten eleven twelve.".replace("Seven", " Seven"),
    ]


def test_short_sections_under_one_heading_are_joined() -> None:
    sections = [
        Section("The mill is old.", ("Mill",)),
        Section("It has two wheels.", ("Mill", "Wheels")),
        Section("It is open.", ("Mill", "Visits")),
        Section("The pool is new.", ("Pool",)),
    ]
    (mill, pool) = merged(sections, 100, count_words)
    assert mill == Section("The mill is old.\n\nWheels\nIt has two wheels.\n\nVisits\nIt is open.", ("Mill",))
    assert pool == sections[3]
    assert merged(sections, 8, count_words)[1:] == sections[2:]


def test_sections_of_several_pages_stay_apart() -> None:
    sections = [Section("a", (), 1), Section("b", (), 2)]
    assert merged(sections, 100, count_words) == sections


def test_a_passage_names_file_title_and_page() -> None:
    chunk = Chunk("text", ("A", "B"), "folder/notes.pdf", 3)
    assert (chunk.passage.title, chunk.passage.source) == ("A › B", "notes.pdf, page 3")
    assert chunk.searched == "A › B\ntext"


@pytest.mark.parametrize(
    ("size", "overlap", "complaint"),
    [
        (15, 0, "size: expected a number of tokens from 16 to 100,000, found 15"),
        (100, 51, r"overlap: expected at most half of the chunk's size \(50 tokens\), found 51"),
        (100, -1, "overlap: expected a number of tokens from 0"),
        (True, 0, "size: expected a number"),
    ],
)
def test_bad_settings_are_refused(size: int, overlap: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ChunkSettings(size, overlap)
