"""Files below the root, and nothing outside of it."""

import os
import threading
from pathlib import Path

import pytest

from tiny_llm.apps.agent.builtin import Builtin, LongOutputs
from tiny_llm.apps.agent.files import FileChange, Root, search
from tiny_llm.apps.agent.tools import ToolError


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Root:
    folder = tmp_path / "root"
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.md").write_text("one\ntwo Anna\nthree")
    return Root(folder)


def untouched(outside: Path) -> bool:
    return [p.name for p in outside.iterdir()] == ["secret.txt"] and (outside / "secret.txt").read_text() == "secret"


@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.txt",
        "notes/../../outside/secret.txt",
        "/etc/passwd",
        "notes/\0a.md",
        "..",
        "notes/..",
        "x" * 5000,
        "link/secret.txt",
        "file_link",
        "notes/a.md/..",
    ],
)
def test_a_path_that_leads_out_is_refused(root: Root, outside: Path, path: str) -> None:
    (root.folder / "link").symlink_to(outside)
    (root.folder / "file_link").symlink_to(outside / "secret.txt")
    for use in (lambda: root.read(path), lambda: root.write(path, "x"), lambda: root.put(path, None)):
        with pytest.raises(ToolError):
            use()
    assert untouched(outside)


def test_an_absolute_path_inside_the_root_is_one_of_it(root: Root) -> None:
    assert root.text(f"{root.folder}/notes/a.md").startswith("one")


def test_a_root_that_is_a_link_is_opened_once(root: Root, tmp_path: Path, outside: Path) -> None:
    link = tmp_path / "alias"
    link.symlink_to(root.folder)
    opened = Root(link)
    link.unlink()
    link.symlink_to(outside)
    assert opened.text("notes/a.md").startswith("one")
    opened.write("b.txt", "b")
    assert untouched(outside)


def test_a_folder_that_turns_into_a_link_leads_nowhere(root: Root, outside: Path) -> None:
    """A check and its use must be one: another thread swaps the folder and a link to the outside all the time."""
    work = root.folder / "work"
    work.mkdir()
    (root.folder / "trap").symlink_to(outside)
    end = threading.Event()

    def swap() -> None:
        while not end.is_set():
            os.rename(work, root.folder / "kept")
            os.rename(root.folder / "trap", work)
            os.rename(work, root.folder / "trap")
            os.rename(root.folder / "kept", work)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for number in range(300):
            for use in (lambda n=number: root.write(f"work/{n % 3}.txt", "x"), lambda: root.read("work/secret.txt")):
                try:
                    found = use()
                except ToolError:
                    continue
                assert found is None
    finally:
        end.set()
        thread.join()
    assert untouched(outside)


def test_a_root_must_be_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none", Path("a\0b")):
        with pytest.raises(ValueError, match="folder|null"):
            Root(path)


def test_odd_files_are_no_text(root: Root) -> None:
    (root.folder / "bytes.bin").write_bytes(b"\xff\xfe\x00")
    (root.folder / "nul.txt").write_bytes(b"a\0b")
    os.mkfifo(root.folder / "pipe")
    for path in ("bytes.bin", "nul.txt", "pipe"):
        with pytest.raises(ToolError, match=f"not a text file: {path}"):
            root.text(path)
    with pytest.raises(ToolError):
        root.text("notes")
    with pytest.raises(ToolError, match="file not found: notes/none.md"):
        root.text("notes/none.md")
    with pytest.raises(ToolError, match="folder not found: none"):
        root.write("none/a.md", "x")
    assert search(root, "b", "") == ["bytes.bin"]


def test_a_write_keeps_permissions_and_leaves_no_other_file(root: Root) -> None:
    path = root.folder / "notes" / "a.md"
    path.chmod(0o640)
    root.write("notes/a.md", "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["a.md"]


def test_a_file_of_two_names_is_changed_under_one(root: Root, outside: Path) -> None:
    os.link(outside / "secret.txt", root.folder / "hard.txt")
    root.write("hard.txt", "x")
    assert untouched(outside)


def test_changes_are_journaled_before_they_are_made(tmp_path: Path) -> None:
    seen: list[tuple[FileChange, bool]] = []
    root = Root(tmp_path, lambda change: seen.append((change, (tmp_path / "a.txt").exists())))
    root.write("./a.txt", "x")
    root.write("a.txt", "y")
    assert seen == [(FileChange("a.txt", None, b"x"), False), (FileChange("a.txt", b"x", b"y"), True)]
    for change, _ in reversed(seen):
        root.undo(change)
    assert not (tmp_path / "a.txt").exists()


def test_undo_spares_what_another_program_wrote(tmp_path: Path) -> None:
    changes: list[FileChange] = []
    root = Root(tmp_path, changes.append)
    root.write("a.txt", "x")
    (tmp_path / "a.txt").write_text("theirs")
    with pytest.raises(ToolError, match=r"a\.txt: was changed since then"):
        root.undo(changes[0])
    assert (tmp_path / "a.txt").read_text() == "theirs"


def test_search_finds_names_and_lines(root: Root) -> None:
    (root.folder / ".hidden").write_text("anna")
    assert search(root, "anna") == ["notes/a.md:2: two Anna"]
    assert search(root, "A.MD") == ["notes/a.md"]
    assert search(root, "zzz") == []
    with pytest.raises(ToolError, match="folder not found: none"):
        search(root, "x", "none")


def test_a_search_is_bounded(root: Root) -> None:
    (root.folder / "many.txt").write_text("x\n" * 1000)
    (root.folder / "more.txt").write_text("x\n" * 1000)
    found = search(root, "x")
    assert len(found) == 51
    assert "cut short" in found[-1]


def test_tools_speak_as_the_model_was_trained(root: Root) -> None:
    tools = Builtin(root, LongOutputs(20))
    assert tools.edit_file({"path": "notes/a.md", "old_string": "Anna", "new_string": "Bob"}) == "Edited notes/a.md."
    assert tools.read_file({"path": "notes/a.md", "start_line": 2, "end_line": 2}) == "two Bob"
    for old, message in (("zzz", "text not found in notes/a.md"), ("t", "text found more than once in notes/a.md")):
        with pytest.raises(ToolError, match=message):
            tools.edit_file({"path": "notes/a.md", "old_string": old, "new_string": ""})


def test_long_texts_are_read_on(root: Root) -> None:
    lines = [f"line {number}" for number in range(1, 101)]
    (root.folder / "long.txt").write_text("\n".join(lines))
    outputs = LongOutputs(200)
    tools = Builtin(root, outputs)
    read: list[str] = []
    start = 1
    while True:
        text = tools.read_file({"path": "long.txt", "start_line": start})
        shown, _, note = text.partition("\n(")
        read += shown.split("\n")
        if not note:
            break
        start = int(note.rpartition("start_line ")[2].rstrip(")"))
        assert start == len(read) + 1
    assert read == lines
    cut = outputs.cut("\n".join(lines))
    assert "read on in output:1 with start_line" in cut
    assert tools.read_file({"path": "output:1", "start_line": 99}) == "line 99\nline 100"


def test_a_file_keeps_its_permissions(root: Root) -> None:
    """Regression: the umask took permissions away that the file had."""
    file = root.folder / "notes" / "a.md"
    file.chmod(0o666)
    root.write("notes/a.md", "new")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o666)
