"""Markers, the files made from them, and that nobody's work is overwritten."""

from pathlib import Path

import pytest

from tests.course.conftest import ROOT
from tiny_llm.course import CourseError, learner, markers, stubs
from tiny_llm.course.catalog import course

SOURCE = '''"""A module."""

import math

# ANCHOR: area
def area(r):
    """Of a circle."""
    # TASK w9.1.1: pi r squared
    square = r * r

    return math.pi * square
    # END TASK
# ANCHOR_END: area
'''


def test_the_exercises_in_the_repository_are_fresh() -> None:
    """`tiny-llm course stubs` makes them again. In a learner's checkout this fails once something is solved."""
    assert stubs.stale(ROOT / "code") == []


def test_a_region_is_read() -> None:
    (region,) = markers.regions(SOURCE, "area.py")
    assert (region.task, region.title, region.indent) == ("w9.1.1", "pi r squared", "    ")
    assert markers.solution(SOURCE, region) == ["    square = r * r", "", "    return math.pi * square"]


def test_a_stub() -> None:
    assert (
        markers.stub(SOURCE, "area.py")
        == '''"""A module."""

import math

from tiny_llm.course import NotDone

def area(r):
    """Of a circle."""
    # YOUR CODE (w9.1.1): pi r squared
    raise NotDone("w9.1.1")
'''
    )


def test_the_import_stands_among_the_packages_own() -> None:
    text = SOURCE.replace("import math", "from tiny_llm.config import A\nfrom tiny_llm.model import B")
    lines = markers.stub(text, "area.py").splitlines()
    assert lines[2:5] == ["from tiny_llm.config import A", markers.IMPORT, "from tiny_llm.model import B"]


def test_without_markers_it_is_the_source() -> None:
    plain = "\n".join(line for line in SOURCE.splitlines() if "#" not in line) + "\n"
    assert markers.without_markers(SOURCE, "area.py") == plain


@pytest.mark.parametrize("name", ["add.metal", "add.h"])
def test_markers_of_metal_and_of_c(name: str) -> None:
    source = "kernel void f() {\n  // TASK w2.3.1: add\n  o[i] = a[i] + b[i];\n  // END TASK\n}\n"
    assert markers.stub(source, name) == (
        'kernel void f() {\n  // YOUR CODE (w2.3.1): add\n#error "NotDone: w2.3.1"\n}\n'
    )


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("# TASK w1.1.1: a\nx = 1", "a.py:1: w1.1.1: END TASK is missing"),
        ("# TASK w1.1.1: a\n# TASK w1.1.2: b\nx = 1\n# END TASK", "a.py:2: w1.1.1: '# TASK w1.1.2: b' within"),
        ("# TASK w1.1.1: a\n# END TASK", "a.py:2: w1.1.1: no solution"),
        ("x = 1\n# END TASK", "a.py:2: '# END TASK' outside"),
        ("# HINT 1: b", "a.py:1: '# HINT 1: b': hints stand in tiny_llm/course/hints/"),
        ("    // HINT: b", "a.py:1: '// HINT: b': hints stand in"),
        ("# TASK 1.1: a\nx = 1\n# END TASK", "a.py:1: '# TASK 1.1: a' outside of a TASK region, or misspelt"),
        ("# TASK w1.1.1: a\n# HINT 1: b\nx = 1\n# END TASK", "a.py:2: '# HINT 1: b': hints stand in"),
        ("# TASK w1.1.1: a\nx = 1\n# HINT 1: b\n# END TASK", "a.py:3: '# HINT 1: b': hints stand in"),
        ("# TASK w1.1.1: a\nx = 1\n# ENDTASK\n# END TASK", "a.py:3: w1.1.1: '# ENDTASK' within"),
        ("if x:\n    # TASK w1.1.1: a\n    x = 1\ny = 1\n# END TASK", "a.py:4: w1.1.1: the block that holds TASK ends"),
        ("# TASK w1.1.1: a\nif x:\n    y = 1\n    # END TASK", "a.py:4: w1.1.1: END TASK is not indented"),
        ("# TASK w1.1.1: a\nx = 1\n# END TASK\n" * 2, "a.py:4: w1.1.1 is there twice"),
    ],
)
def test_markers_that_do_not_pair_up_are_refused(lines: str, complaint: str) -> None:
    with pytest.raises(CourseError) as error:
        markers.regions(lines, "a.py")
    assert str(error.value).startswith(complaint)


def test_a_stub_that_python_cannot_read_is_refused() -> None:
    """A region that takes half a statement."""
    source = "x = (\n# TASK w1.1.1: a\n1)\n# END TASK\n"
    with pytest.raises(CourseError, match=r"a\.py: line 1 of the learner's file would be"):
        markers.stub(source, "a.py")


def test_stale_names_changed_missing_and_foreign_files(tmp_path: Path) -> None:
    stubs.write(tmp_path)
    assert stubs.stale(tmp_path) == []
    (tmp_path / "week1" / "rope.py").write_text("x = 1\n")
    (tmp_path / "week1" / "stop.py").unlink()
    (tmp_path / "week1" / "more.py").write_text("")
    (tmp_path / "week2" / "few.h").write_text("")
    assert stubs.stale(tmp_path) == ["week1/more.py", "week1/rope.py", "week1/stop.py", "week2/few.h"]


def test_one_byte_is_enough(tmp_path: Path) -> None:
    stubs.write(tmp_path)
    path = tmp_path / "week1" / "rope.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert stubs.stale(tmp_path) == ["week1/rope.py"]


def test_a_changed_file_is_copied_before_it_is_written_again(tmp_path: Path) -> None:
    stubs.write(tmp_path)
    path = tmp_path / "week1" / "rope.py"
    for text in ("first try\n", "second try\n"):
        path.write_text(text)
        ((file, copy),) = stubs.write(tmp_path)
        assert file == "week1/rope.py"
        assert copy is not None
        assert copy.read_text() == text
    assert sorted(copy.name for copy in (tmp_path / "saved" / "week1").iterdir()) == ["rope-2.py", "rope.py"]
    assert stubs.stale(tmp_path) == []


def test_the_course_knows_every_region() -> None:
    found = [region.task for source in course().files.values() for region in _regions(source)]
    assert sorted(found) == sorted(task.id for task in course().tasks)


def _regions(source: str) -> list[markers.Region]:
    return markers.regions((ROOT / source).read_text(encoding="utf-8"), source)


def test_each_symbol_holds_its_region() -> None:
    """The symbol in course.toml is the function in which the marker stands."""
    for task in course().tasks:
        path = ROOT / task.source
        lines = learner.function_lines(path.read_text(encoding="utf-8"), task.symbol, path)
        assert [line for line in lines if f" TASK {task.id}: " in line], task.id
