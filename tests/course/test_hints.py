"""Hints: where they stand, that each is there, and that a file which is not complete is refused."""

import re
from pathlib import Path

import pytest

from tests.course.conftest import ROOT
from tiny_llm.course import CourseError, hints, markers, toml
from tiny_llm.course.catalog import course, read_source

TASKS = ("w1.1.1", "w1.1.2", "w2.10.1")
WEEK1 = """
["w1.1.1"]
question = "Why?"
approach = \"\"\"
Think,
then write.\"\"\"
pseudocode = 'x = "y"'

["w1.1.2"]
pseudocode = "c"
question = "a"
approach = "b"
"""
LATER = '["w2.10.1"]\nquestion = "d"\napproach = "e"\npseudocode = "f"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Hints of TASKS."""
    folder = tmp_path / "hints"
    folder.mkdir()
    (folder / "week1.toml").write_text(WEEK1)
    (folder / "w2-10.toml").write_text(LATER)
    return folder


def refused(folder: Path) -> str:
    with pytest.raises(CourseError) as error:
        hints.read(TASKS, folder)
    return str(error.value)


def test_hints_go_from_the_question_to_pseudocode_whatever_their_order_in_the_file(folder: Path) -> None:
    assert hints.read(TASKS, folder) == {
        "w1.1.1": ("Why?", "Think,\nthen write.", 'x = "y"'),
        "w1.1.2": ("a", "b", "c"),
        "w2.10.1": ("d", "e", "f"),
    }


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('["w1.1.1"]', '["w1.1.9"]', "week1.toml: w1.1.9: no such task in course.toml"),
        ('["w1.1.1"]', "[w1.1.1]", "week1.toml: w1: no such task in course.toml"),
        (WEEK1, "", "week1.toml: w1.1.1: no hints; add a table with question, approach, pseudocode"),
        ('approach = "b"\n', "", "week1.toml: w1.1.2: approach is missing"),
        ('approach = "b"', 'aproach = "b"', "week1.toml: w1.1.2: aproach: no such level; the levels are question,"),
        ('approach = "b"', 'approach = "b"\nmore = "c"', "week1.toml: w1.1.2: more: no such level"),
        ('approach = "b"', 'approach = ""', "week1.toml: w1.1.2: approach: expected a text, found ''"),
        ('approach = "b"', 'approach = " \\n"', "week1.toml: w1.1.2: approach: expected a text, found ' \\n'"),
        ('approach = "b"', "approach = 3", "week1.toml: w1.1.2: approach: expected a text, found 3"),
        ('approach = "b"', 'approach = ["b"]', "week1.toml: w1.1.2: approach: expected a text, found ['b']"),
        (
            WEEK1,
            '"w1.1.1" = "a"',
            "week1.toml: w1.1.1: expected a table with question, approach, pseudocode, found 'a'",
        ),
        ('["w1.1.2"]', '["w1.1.1"]', "week1.toml: cannot be read as TOML: "),
        (WEEK1, WEEK1 + LATER, "week1.toml: w2.10.1: its hints belong in w2-10.toml"),
    ],
)
def test_hints_that_are_not_complete_are_refused_with_file_and_name(
    folder: Path, old: str, new: str, complaint: str
) -> None:
    path = folder / "week1.toml"
    assert old in WEEK1
    path.write_text(WEEK1.replace(old, new))
    assert refused(folder).startswith(f"{folder}/{complaint}")


def test_a_file_or_a_folder_that_is_missing_is_told_as_the_first_task_without_hints(folder: Path) -> None:
    (folder / "w2-10.toml").unlink()
    assert refused(folder).startswith(f"{folder}/w2-10.toml: w2.10.1: no hints")
    with pytest.raises(CourseError, match=r"nowhere/week1\.toml: w1\.1\.1: no hints"):
        hints.read(TASKS, folder / "nowhere")


def test_the_hints_stand_in_files_named_as_those_of_the_mistakes() -> None:
    names = {path.name for path in (toml.HERE / "mistakes").iterdir()}
    assert {path.name for path in hints.FOLDER.iterdir()} == names


def test_no_hint_is_left_in_the_sources() -> None:
    """Of an exercise the engine holds its two marker lines only."""
    files = [path for path in (ROOT / "tiny_llm").rglob("*") if path.suffix in (".py", ".metal", ".h", ".cpp", ".cu")]
    assert files
    marked = re.compile(r"HINT \d|(#|//)\s*HINT\b")
    assert [path for path in files if marked.search(path.read_text(encoding="utf-8"))] == []


def test_hints_spell_at_most_half_of_a_solution() -> None:
    """A solution of a single line is exempt: its pseudo-code can hardly say less."""
    for task in course().tasks:
        text = read_source(task.source)
        region = next(region for region in markers.regions(text, task.source) if region.task == task.id)
        lines = [line.strip() for line in markers.solution(text, region) if line.strip()]
        told = "\n".join(task.hints)
        spelled = [line for line in lines if len(line) > len("return x") and line in told]
        assert len(lines) == 1 or len(spelled) <= len(lines) / 2, task.id
