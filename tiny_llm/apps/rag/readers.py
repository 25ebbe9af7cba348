"""Read files as sections of text: plain text, Markdown, HTML, PDF and source code.

A section knows its title path, such as ("Paged cache", "Block tables"), and in a PDF its page. HTML needs `selectolax`
and PDF `pypdf`, of the extra `rag`.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

LARGEST = 32 * 2**20  # bytes of a file
INSTALL = "install it with pip install 'tiny-llm[rag]'"
CODE = frozenset(
    ".py .pyi .js .mjs .ts .tsx .jsx .java .kt .swift .c .h .cc .cpp .hpp .cs .m .mm .metal .cu .rs .go .rb .php .sh "
    ".lua .sql .r .jl .scala .zig".split()
)
TEXT = frozenset(".txt .text .rst .org .csv .tsv .log .toml .yaml .yml .json .jsonl .ini .cfg .tex .xml".split())
MARKDOWN = frozenset((".md", ".markdown", ".mdx"))
HTML = frozenset((".html", ".htm", ".xhtml"))
KNOWN = CODE | TEXT | MARKDOWN | HTML | {".pdf", ""}
HEADING = re.compile(r"(#{1,6})\s+(.+?)\s*#*\s*$")
UNDERLINE = re.compile(r"(=+|-+)\s*$")
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
DEFINITION = re.compile(
    r"(?:export\s+|pub\s+|public\s+|static\s+|async\s+|abstract\s+|default\s+)*"
    r"(?:def|class|func|fn|function|struct|enum|trait|impl|interface|type|module|kernel)\s+([A-Za-z_][\w:<>.]*)"
)
BLOCKS = frozenset("p li dt dd pre td th blockquote figcaption caption div section article main body".split())
HIDDEN = "script, style, noscript, template, nav, svg, head > :not(title)"


class UnreadableError(ValueError):
    """A file holds no text that can be read; the message is the reason."""


@dataclass(frozen=True)
class Section:
    """A part of a file under one heading. `titles`: the path of headings. `page` counts from 1, None without pages."""

    text: str
    titles: tuple[str, ...] = ()
    page: int | None = None


def read_sections(path: Path) -> list[Section]:
    """Return the sections of a file, without empty ones.

    Raises UnreadableError with the reason for a file that is binary, encrypted, damaged, too large, or holds no text,
    and OSError for a file that can't be opened.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise UnreadableError(f"too large: {size:,} bytes, more than {LARGEST:,}; divide it into smaller files")
    return sections_of(path.read_bytes(), path.suffix.lower())


def sections_of(data: bytes, suffix: str) -> list[Section]:
    """Return the sections of a file's content. Raises UnreadableError with the reason."""
    reader = READERS.get(suffix)
    if reader is not None:
        sections = reader(data)
    elif suffix in CODE:
        sections = code_sections(text_of_bytes(data))
    else:
        sections = [Section(text_of_bytes(data))]
    filled = [section for section in sections if section.text.strip()]
    if not filled:
        raise UnreadableError("no text in it")
    return filled


def text_of_bytes(data: bytes) -> str:
    """Return UTF-8 text without a byte order mark, with \\n at the ends of lines."""
    if b"\0" in data:
        raise UnreadableError("a binary file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 text: byte 0x{data[error.start]:02x} at {error.start:,}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def markdown_sections(data: bytes) -> list[Section]:
    """Return a section for each heading of a Markdown text; a # in a fenced block is no heading."""
    sections: list[Section] = []
    titles: list[tuple[int, str]] = []
    lines: list[str] = []
    fence = ""

    def close() -> None:
        sections.append(Section("\n".join(lines), tuple(title for _, title in titles)))
        lines.clear()

    for line in text_of_bytes(data).split("\n"):
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence else HEADING.match(line)
        underline = None if fence else UNDERLINE.match(line)
        if heading:
            level, title = len(heading[1]), heading[2]
        elif underline and lines and lines[-1].strip() and not lines[-1].startswith(("|", "-", "*", ">", " ")):
            level, title = 1 if line.startswith("=") else 2, lines.pop().strip()
        else:
            lines.append(line)
            continue
        close()
        titles = [(depth, text) for depth, text in titles if depth < level]
        titles.append((level, title))
    close()
    return sections


def html_sections(data: bytes) -> list[Section]:
    """Return a section for each heading of an HTML page, without scripts, styles and navigation."""
    try:
        from selectolax.parser import HTMLParser
    except ImportError:
        raise UnreadableError(f"HTML needs the package selectolax: {INSTALL}") from None
    tree = HTMLParser(text_of_bytes(data))
    for node in tree.css(HIDDEN):
        node.decompose()
    title = tree.css_first("title")
    first = " ".join(title.text().split()) if title is not None else ""
    sections: list[Section] = []
    titles: list[tuple[int, str]] = [(0, first)] if first else []
    words: list[str] = []

    def close() -> None:
        text = re.sub(r"[ \t]*\n\s*", "\n", re.sub(r"[ \t]+", " ", "".join(words)))
        sections.append(Section(html.unescape(text).strip(), tuple(title for _, title in titles)))
        words.clear()

    body: Any = tree.body
    nodes = [] if body is None else body.traverse(include_text=True)
    inside: list[str] = []  # the texts of the heading that was opened last belong to its title
    for node in nodes:
        tag = node.tag
        if re.fullmatch("h[1-6]", tag):
            close()
            level = int(tag[1])
            heading = " ".join(node.text().split())
            titles = [(depth, text) for depth, text in titles if depth < level]
            titles.append((level, heading))
            inside = [text.text(deep=False) for text in node.traverse(include_text=True) if text.tag == "-text"]
        elif tag == "-text":
            text = node.text(deep=False)
            if text in inside:
                inside.remove(text)
                continue
            words.append(re.sub(r"\s+", " ", text))
        elif tag in BLOCKS or tag in ("br", "tr"):
            words.append("\n")
    close()
    return sections


def pdf_sections(data: bytes) -> list[Section]:
    """Return a section for each page of a PDF."""
    try:
        import pypdf
    except ImportError:
        raise UnreadableError(f"PDF needs the package pypdf: {INSTALL}") from None
    try:
        file = pypdf.PdfReader(BytesIO(data))
        if file.is_encrypted and not file.decrypt(""):
            raise UnreadableError("encrypted: remove its password first")
        title = str((file.metadata or {}).get("/Title") or "").strip()
        titles = (title,) if title else ()
        return [Section(page.extract_text(), titles, number) for number, page in enumerate(file.pages, 1)]
    except UnreadableError:
        raise
    except Exception as error:  # pypdf raises many kinds for damaged files, KeyError and RecursionError among them
        raise UnreadableError(f"a damaged PDF: {type(error).__name__}: {error}") from error


def code_sections(text: str) -> list[Section]:
    """Return a section for each definition that begins at a line's first column, and one for the lines before."""
    sections: list[Section] = []
    titles: tuple[str, ...] = ()
    lines: list[str] = []
    for line in text.split("\n"):
        found = DEFINITION.match(line)
        if found:
            above: list[str] = []  # decorators and comments belong to the definition below them
            while lines and lines[-1].startswith(("@", "#", "//", "/*", " *", "template")):
                above.insert(0, lines.pop())
            sections.append(Section("\n".join(lines), titles))
            titles = (found[1],)
            lines = above
        lines.append(line)
    sections.append(Section("\n".join(lines), titles))
    return sections


READERS: dict[str, Callable[[bytes], list[Section]]] = {".pdf": pdf_sections}
READERS |= dict.fromkeys(MARKDOWN, markdown_sections) | dict.fromkeys(HTML, html_sections)
