"""Files become sections with their headings and pages, and files that can't be read are refused with the reason."""

import os
import time
from io import BytesIO
from pathlib import Path

import pypdf
import pytest

from tiny_llm.apps.rag import readers
from tiny_llm.apps.rag.files import Skipped, find_files
from tiny_llm.apps.rag.readers import UnreadableError, read_sections, sections_of


def pdf(*pages: str, title: str = "") -> bytes:
    """A PDF with a line of text on each page, written by hand."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>"]
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for i, text in enumerate(pages):
        font = "<< /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Resources {font} /Contents {5 + 2 * i} 0 R >>"
        )
        content = f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    data, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{text}\nendobj\n".encode()
    start = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += "".join(f"{place:010d} 00000 n \n" for place in places).encode()
    info = f"/Info {len(objects)} 0 R"
    return data + f"trailer << /Size {len(objects) + 1} /Root 1 0 R {info} >>\nstartxref\n{start}\n%%EOF\n".encode()


def test_markdown_headings_are_a_path() -> None:
    text = b"intro\n# A\none\n## B\ntwo\n```sh\n# no heading\n```\n## C\nthree\n# D\nfour\nTitle\n=====\nfive\n"
    found = [(section.titles, section.text.strip()) for section in sections_of(text, ".md")]
    assert found == [
        ((), "intro"),
        (("A",), "one"),
        (("A", "B"), "two\n```sh\n# no heading\n```"),
        (("A", "C"), "three"),
        (("D",), "four"),
        (("Title",), "five"),
    ]


def test_a_table_and_a_rule_are_no_headings() -> None:
    (section,) = sections_of(b"| a | b |\n---\n- x\n---\ntext\n", ".md")
    assert section.titles == ()


def test_html_has_no_scripts_and_no_navigation() -> None:
    page = b"""<html><head><title>Birds</title><style>p {}</style></head><body><nav>Menu</nav>
    <h1>Owls</h1><p>They hunt <b>voles</b> &amp; mice.</p><script>alert(1)</script>
    <h2>Eggs</h2><ul><li>six</li><li>white</li></ul></body></html>"""
    found = [(section.titles, section.text) for section in sections_of(page, ".html")]
    assert found == [(("Birds", "Owls"), "They hunt voles & mice."), (("Birds", "Owls", "Eggs"), "six\nwhite")]


def test_pdf_pages_are_counted() -> None:
    found = sections_of(pdf("Hello there", "Second page", title="Notes"), ".pdf")
    assert [(section.text.strip(), section.page, section.titles) for section in found] == [
        ("Hello there", 1, ("Notes",)),
        ("Second page", 2, ("Notes",)),
    ]


def test_code_is_cut_at_definitions() -> None:
    text = b"import os\n\n@cache\ndef one():\n    return 1\n\nclass Two:\n    def three(self): ...\n"
    found = [(section.titles, section.text.strip()) for section in sections_of(text, ".py")]
    assert found == [
        ((), "import os"),
        (("one",), "@cache\ndef one():\n    return 1"),
        (("Two",), "class Two:\n    def three(self): ..."),
    ]


def encrypted() -> bytes:
    writer = pypdf.PdfWriter(BytesIO(pdf("secret")))
    writer.encrypt("password", algorithm="RC4-128")
    stream = BytesIO()
    writer.write(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "suffix", "reason"),
    [
        (b"\x7fELF\0\0\1", "", "a binary file"),
        (b"caf\xe9", ".txt", "not UTF-8 text: byte 0xe9 at 3"),
        (b" \n\n", ".md", "no text in it"),
        (b"", ".txt", "no text in it"),
        (b"%PDF-1.4\nrubbish", ".pdf", "a damaged PDF"),
        (pdf("a")[:200], ".pdf", "a damaged PDF"),
        (b"", ".pdf", "a damaged PDF"),
        (b"<html><script>x</script></html>", ".html", "no text in it"),
    ],
)
def test_unreadable_files_are_refused_with_the_reason(data: bytes, suffix: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason):
        sections_of(data, suffix)


def test_an_encrypted_pdf_is_refused() -> None:
    with pytest.raises(UnreadableError, match="encrypted: remove its password first"):
        sections_of(encrypted(), ".pdf")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(UnreadableError, match="too large: 11 bytes, more than 10; divide it"):
        read_sections(tmp_path / "a.txt")


def test_hidden_and_unknown_files_are_left_out(tmp_path: Path) -> None:
    for name in ("a.md", ".hidden.md", "b.png", ".git/c.md", "__pycache__/d.py", "sub/e.txt", "LICENSE"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    files, skipped = find_files([tmp_path])
    assert [file.relative_to(tmp_path.resolve()).as_posix() for file in files] == ["LICENSE", "a.md", "sub/e.txt"]
    assert skipped == []


def test_links_out_of_the_folder_are_skipped(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (tmp_path / "secret.txt").write_text("x")
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "x.md").write_text("x")
    (folder / "a.md").write_text("x")
    (folder / "again.md").symlink_to(folder / "a.md")
    (folder / "out.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "folder").symlink_to(tmp_path / "others")
    (folder / "broken.md").symlink_to(folder / "none.md")
    files, skipped = find_files([folder])
    assert [file.name for file in files] == ["a.md"]
    assert sorted((entry.path.name, entry.reason) for entry in skipped) == [
        ("folder", "a link out of the folder"),
        ("out.txt", "a link out of the folder"),
    ]


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none: expected a file or a folder, found none; check the name"):
        find_files([tmp_path / "none"])


def test_a_heading_is_read_in_time_in_proportion_to_its_length() -> None:
    """Regression: a heading with many spaces in it took minutes."""
    begin = time.perf_counter()
    sections = sections_of(b"# a" + b" " * 20_000 + b"b ## \ntext\n## Sharp C#\nmore\n# #\nlast\n", ".md")
    assert time.perf_counter() - begin < 5
    assert [section.titles[-1].split() for section in sections] == [["a", "b"], ["Sharp", "C"], ["#"]]


def test_a_pipe_is_skipped(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert find_files([pipe]) == ([], [Skipped(pipe, "neither a file nor a folder")])
