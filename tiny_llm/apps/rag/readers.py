"""Read files as sections of text: plain text, Markdown, HTML, PDF and source code.

A section knows its title path, such as ("Paged cache", "Block tables"), and in a PDF its page. HTML needs `selectolax`
and PDF `pypdf`, of the extra `rag`.
"""

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
HEADING = re.compile(r"(#{1,6})\s+(?=\S)")
UNDERLINE = re.compile(r"(=+|-+)\s*$")
FENCE = re.compile(r"\s*(`{3,}|~{3,})")
DEFINITION = re.compile(
    r"(?:export\s+|pub\s+|public\s+|static\s+|async\s+|abstract\s+|default\s+)*"
    r"(?:def|class|func|fn|function|struct|enum|trait|impl|interface|type|module|kernel)\s+([A-Za-z_][\w.]*(?:::\w+)*)"
)
BLOCKS = frozenset("p li dt dd pre td th blockquote figcaption caption div section article main body br tr".split())
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
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


class Outline:
    """Sections in the making: the path of headings that are open, and the text below the last of them."""

    def __init__(self, title: str = ""):
        self.sections: list[Section] = []
        self.headings: list[tuple[int, str]] = [(0, title)] if title else []
        self.parts: list[str] = []

    def open(self, level: int, title: str) -> None:
        """Begin a section; its heading closes those of its level and of deeper ones."""
        self.close()
        self.headings = [(depth, text) for depth, text in self.headings if depth < level]
        self.headings.append((level, title))

    def close(self) -> None:
        """End the section."""
        titles = tuple(title for _, title in self.headings)
        self.sections.append(Section("".join(self.parts).strip("\n"), titles))
        self.parts = []


def markdown_sections(data: bytes) -> list[Section]:
    """Return a section for each heading of a Markdown text; a # in a fenced block is no heading."""
    outline = Outline()
    fence = ""
    for line in text_of_bytes(data).split("\n"):
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence else HEADING.match(line)
        underline = None if fence else UNDERLINE.match(line)
        if heading:
            outline.open(len(heading[1]), heading_text(line[heading.end() :]))
        elif underline and outline.parts and is_title(outline.parts[-1]):
            title = outline.parts.pop().strip()
            outline.open(1 if line.startswith("=") else 2, title)
        else:
            outline.parts.append(line + "\n")
    outline.close()
    return outline.sections


def heading_text(rest: str) -> str:
    """Return a heading's text without the # signs that may close it: "Title ##" → "Title"."""
    text = rest.rstrip()
    return text.rstrip("#").rstrip() or text


def is_title(line: str) -> bool:
    """Return whether a line can be the heading above a row of = or -: no table, list, quotation or code."""
    return line.strip() != "" and not line.startswith(("|", "-", "*", ">", " "))


def html_sections(data: bytes) -> list[Section]:
    """Return a section for each heading of an HTML page, without scripts, styles and navigation."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise UnreadableError(f"HTML needs the package selectolax: {INSTALL}") from None
    tree = LexborHTMLParser(text_of_bytes(data))
    for node in tree.css(HIDDEN):
        node.decompose()
    title = tree.css_first("title")
    outline = Outline("" if title is None else " ".join(title.text().split()))
    body: Any = tree.body
    left = 0  # the nodes within a heading, whose texts are its title
    for node in () if body is None else body.traverse(include_text=True):
        if left:
            left -= 1
            continue
        tag = node.tag
        if tag in HEADINGS:
            outline.open(int(tag[1]), " ".join(node.text().split()))
            left = sum(1 for _ in node.traverse(include_text=True)) - 1
        elif tag == "-text":
            outline.parts.append(re.sub(r"\s+", " ", node.text(deep=False)))
        elif tag in BLOCKS:
            outline.parts.append("\n")
    outline.close()
    return [tidied(section) for section in outline.sections]


def tidied(section: Section) -> Section:
    """Return a section without spaces at the ends of lines and without empty lines."""
    lines = [" ".join(line.split()) for line in section.text.split("\n")]
    text = "\n".join(line for line in lines if line)
    return Section(text, section.titles, section.page)


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
        metadata = file.metadata
        title = str(metadata.title or "").strip() if metadata is not None else ""
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
