"""Divide the sections of a file into chunks: whole sentences or lines, with overlap, counted in a model's tokens."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tiny_llm.apps.rag.readers import Section
from tiny_llm.apps.rag.steps import windows
from tiny_llm.config.fields import require, shown
from tiny_llm.config.prompts import Passage
from tiny_llm.model.tokenizer import Tokenizer

TokenCounter = Callable[[Sequence[str]], list[int]]  # the number of tokens of each text
SEPARATOR = " › "  # of the headings in a title path
UNIT = re.compile(r"[^\n]+?(?:[.!?:;][\"')\]]*(?=\s)|(?=\n)|$)\n*|\n+", re.MULTILINE)


@dataclass(frozen=True)
class ChunkSettings:
    """Tokens of a chunk at most, and tokens that consecutive chunks share at most."""

    size: int = 400
    overlap: int = 100

    def __post_init__(self) -> None:
        for name, low in (("size", 16), ("overlap", 0)):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= 100_000
            require(ok, f"{name}: expected a number of tokens from {low} to 100,000, found {shown(value)}")
        require(
            self.overlap <= self.size // 2,
            f"overlap: expected at most half of the chunk's size ({self.size // 2} tokens), found {self.overlap}",
        )


class TextUnit(NamedTuple):
    """A sentence or line, and its number of tokens."""

    text: str
    length: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. `source`: its file; `context`: a sentence on it by a model; `id`: its row, once stored."""

    text: str
    titles: tuple[str, ...] = ()
    source: str = ""
    page: int | None = None
    context: str = ""
    id: int = field(default=0, compare=False)

    @property
    def title(self) -> str:
        return SEPARATOR.join(self.titles)

    @property
    def searched(self) -> str:
        """The text that is searched and embedded: title path, context and text."""
        return "\n".join(part for part in (self.title, self.context, self.text) if part)

    @property
    def passage(self) -> Passage:
        """The chunk as a passage of a prompt; its source is the name of the file, with the page."""
        name = Path(self.source).name
        source = name if self.page is None else f"{name}, page {self.page}"
        return Passage(self.text, self.title, source)


def chunks_of(
    sections: Sequence[Section], source: str, settings: ChunkSettings, count_tokens: TokenCounter
) -> list[Chunk]:
    """Return the chunks of a document: none reaches over the end of a section (see `merged`), or has more than `size`
    tokens.

    A sentence or line of more tokens is divided at spaces, and a word of more tokens between its characters.
    """
    found: list[Chunk] = []
    for section in merged(sections, settings.size, count_tokens):
        units = units_of(section.text, settings.size, count_tokens)
        for begin, end in windows([unit.length for unit in units], settings.size, settings.overlap):
            text = "".join(unit.text for unit in units[begin:end]).strip("\n").rstrip()
            if text.strip():
                found.append(Chunk(text, section.titles, source, section.page))
    return found


def merged(sections: Sequence[Section], size: int, count_tokens: TokenCounter) -> list[Section]:
    """Join neighbouring sections under one main heading that have at most `size` tokens together.

    A short section alone often lacks the subject of its sentences, which stands in the section before. The headings
    that are not common to the joined sections become lines of the text.
    """
    found: list[Section] = []
    total = 0
    for section, length in zip(sections, count_tokens([section.text for section in sections]), strict=True):
        last = found[-1] if found else None
        if last is None or total + length > size or last.page != section.page or last.titles[:1] != section.titles[:1]:
            found.append(section)
            total = length
            continue
        common = common_titles(last, section)
        parts = [under_heading(part, len(common)) for part in (last, section)]
        found[-1] = Section("\n\n".join(parts), common, section.page)
        total += length
    return found


def common_titles(one: Section, other: Section) -> tuple[str, ...]:
    """Return the headings that begin the title paths of both sections."""
    common: list[str] = []
    for mine, its in zip(one.titles, other.titles, strict=False):
        if mine != its:
            break
        common.append(mine)
    return tuple(common)


def under_heading(section: Section, depth: int) -> str:
    """Return a section's text below its headings from the given depth on."""
    heading = SEPARATOR.join(section.titles[depth:])
    text = section.text.strip("\n")
    return f"{heading}\n{text}" if heading else text


def counter(tokenizer: Tokenizer) -> TokenCounter:
    """Return a function that counts the tokens of texts."""

    def count(texts: Sequence[str]) -> list[int]:
        encodings = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    return count


def units_of(text: str, size: int, count_tokens: TokenCounter) -> list[TextUnit]:
    """Return the sentences or lines of a text, of which each has at most `size` tokens; together they are the text."""
    pieces = UNIT.findall(text)
    units: list[TextUnit] = []
    for piece, length in zip(pieces, count_tokens(pieces), strict=True):
        if length <= size:
            units.append(TextUnit(piece, length))
        else:
            units += divided(piece, length, size, count_tokens)
    return units


def divided(text: str, length: int, size: int, count_tokens: TokenCounter) -> list[TextUnit]:
    """Return parts of a text of `length` tokens with at most `size` tokens each, cut at spaces where these are near.

    The text is cut into equally many characters, as many parts as its tokens need; a part that is still too long is
    divided again.
    """
    if length <= size or len(text) < 2:
        return [TextUnit(text, length)]
    step = max(1, len(text) // (length // size + 1))
    parts: list[str] = []
    begin = 0
    while begin < len(text):
        end = begin + step
        space = text.rfind(" ", begin + step // 2, end)
        end = space + 1 if space >= 0 and end < len(text) else end
        parts.append(text[begin:end])
        begin = end
    units: list[TextUnit] = []
    for part, tokens in zip(parts, count_tokens(parts), strict=True):
        units += divided(part, tokens, size, count_tokens)
    return units
