"""Control tokens: the texts of a vocabulary that steer the model; a message that spells one must stay text.

A chat template joins its own control tokens and the words of messages to one text. To tell them apart afterwards,
`Marker` puts a private-use character into each control token that a message spells, and at a message's borders if only
a part of a token stands there. `Controls.find` then finds only the template's own tokens, and `Controls.encode` gives
these to a second tokenizer under names that no text contains.
"""

import json
import re
import secrets
from collections.abc import Container, Iterable
from functools import cached_property
from os.path import commonprefix
from typing import Any

import tokenizers

from tiny_llm.model.rendered import Rendered, Spans

PRIVATE = range(0xE000, 0xF900)  # characters for private use: no text needs them
ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def unused_character(texts: Iterable[str]) -> str:
    """Return a private-use character that is in none of the texts, not even as a JSON escape."""
    used: set[str] = set()
    for text in texts:
        used.update(text)
        used.update(chr(int(code, 16)) for code in ESCAPED.findall(text))
    for code in PRIVATE:
        if chr(code) not in used:
            return chr(code)
    raise ValueError(f"messages: expected a character of U+E000 to U+F8FF that is unused, found all {len(PRIVATE)}")


class Marker:
    """Marks the places that spell one of the control tokens `tokens`, in texts without the character `mark`."""

    def __init__(self, tokens: Iterable[str], mark: str):
        self.tokens = list(tokens)
        self.mark = mark
        lengths = [len(token) for token in self.tokens]
        self.longest = max(lengths, default=0)
        self.firsts = {token[0] for token in self.tokens}
        self.lasts = {token[-1] for token in self.tokens}
        self.starts = re.compile(f"(?:{_starts(self.tokens)})(?!{mark})")

    def __call__(self, text: str, *, borders: bool = True, inside: bool = False) -> str:
        """Return the text with marks.

        `borders`: also mark where a part of a token begins or ends the text, because the template may add the rest.
        `inside`: also mark a text that is the middle of a token.
        """
        if not self.tokens:
            return text
        if borders:
            text = self._marked_head(self._marked_tail(text), inside)
        return self.starts.sub(rf"\g<0>{self.mark}", text)

    def _marked_tail(self, text: str) -> str:
        """Mark the beginnings of tokens at the end of the text, before white space that a template may strip."""
        end = len(text.rstrip())
        begin = max(0, end - self.longest)
        tail = text[begin:end]
        for place in reversed(range(len(tail))):
            if tail[place] not in self.firsts:
                continue
            part = tail[place:].replace(self.mark, "")
            if self._begins(part):
                after = place + 1
                tail = tail[:after] + self.mark + tail[after:]
        return text[:begin] + tail + text[end:]

    def _begins(self, part: str) -> bool:
        return any(token.startswith(part) and token != part for token in self.tokens)

    def _marked_head(self, text: str, inside: bool) -> str:
        """Mark the end of a token at the beginning of the text."""
        begin = len(text) - len(text.lstrip())
        head = text[begin : begin + 2 * self.longest]  # a mark may follow each character
        head = head.replace(self.mark, "")
        found = self._begins_with_an_end(head[: self.longest])
        if inside and not found:
            found = self._is_a_middle(text)
        if not found:
            return text
        return text[:begin] + 2 * self.mark + text[begin:]

    def _begins_with_an_end(self, head: str) -> bool:
        """Return whether the text begins with the end of a token."""
        ends = [place + 1 for place, character in enumerate(head) if character in self.lasts]
        return any(self._ends(head[:end]) for end in ends)

    def _ends(self, part: str) -> bool:
        return any(token.endswith(part) and token != part for token in self.tokens)

    def _is_a_middle(self, text: str) -> bool:
        """Return whether the whole text is inside a token."""
        if len(text) >= 4 * self.longest:  # too long for it; most texts are
            return False
        whole = text.strip().replace(self.mark, "")
        if whole == "":
            return False
        return any(whole in token[1:-1] for token in self.tokens)


class Controls:
    """The control tokens of a tokenizer.

    `special`: tokens that a message never contains, whoever writes it. `tokens`: the special tokens and the other added
    tokens, such as `<think>`, except for words and white space, which some vocabularies add.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        special = set()
        tokens = set()
        normalized = False
        for token in backend.get_added_tokens_decoder().values():
            text = token.content
            if not text:
                continue
            if token.special:
                special.add(text)
            if token.special or not _is_word(text):
                tokens.add(text)
                normalized |= token.normalized
        self.special = frozenset(special)
        self.tokens = frozenset(tokens)
        self.normalizer_can_spell = normalized and backend.normalizer is not None

    def find(self, text: str, mark: str) -> Spans:
        """Return the places of the control tokens without marks in the text, counted without the marks."""
        if not self.tokens:
            return ()
        spans = []
        marks = end = 0
        for match in re.finditer(self._pattern, text):
            if len(match[0]) == 1 and _marks_at(text, match.end(), mark) % 2:
                continue  # a message's token of one character has its mark behind it; borders have two
            marks += text.count(mark, end, match.start())
            end = match.end()
            spans.append((match.start() - marks, match.end() - marks))
        return tuple(spans)

    def encode(self, text: Rendered) -> list[int]:
        """Return the ids of a text in which only `text.controls` are control tokens."""
        # encode_batch lets other threads run meanwhile, which encode does not
        if text.controls is None:
            return self.backend.encode_batch([str(text)], add_special_tokens=False)[0].ids
        second, names = self._second
        pieces = []
        end = 0
        for begin, after in text.controls:
            pieces += [text[end:begin], names[text[begin:after]]]
            end = after
        return second.encode_batch(["".join([*pieces, text[end:]])], add_special_tokens=False)[0].ids

    @cached_property
    def _pattern(self) -> str:
        return _any_of(self.tokens)

    @cached_property
    def _second(self) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
        """The same tokenizer with other names for its control tokens, and these names.

        A name is drawn by chance, so that no text can contain it on purpose.
        """
        secret = "".join(chr(secrets.choice(PRIVATE)) for _ in range(8))
        names = {}
        for place, token in enumerate(sorted(self.tokens)):
            names[token] = f"{secret}{place}{secret}"
        data = json.loads(self.backend.to_str())
        for added in data["added_tokens"]:
            name = names.get(added["content"])
            if name is not None:
                added |= {"content": name, "normalized": False, "single_word": False}
        _rename(data["model"], names)
        return tokenizers.Tokenizer.from_str(json.dumps(data)), names


def _marks_at(text: str, place: int, mark: str) -> int:
    count = 0
    while text.startswith(mark, place + count):
        count += 1
    return count


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens in the model of a tokenizer.json, so that it can't build them from their letters."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    unknown = model.get("unk_token")
    if unknown in names:
        model["unk_token"] = names[unknown]
    if model.get("merges"):
        model["merges"] = _merges_without(model["merges"], names)


def _merges_without(merges: Iterable[Any], names: Container[str]) -> list[list[str]]:
    """Return the merges, each as a pair, without those that take or make one of the tokens `names`."""
    kept = []
    for merge in merges:
        pair = merge
        if isinstance(merge, str):  # how older files write it
            pair = merge.split(" ", 1)
        left, right = pair
        if left not in names and right not in names and left + right not in names:
            kept.append([left, right])
    return kept


def _is_word(text: str) -> bool:
    """Return whether an added token is a word or white space, which does not steer the model."""
    return all(character.isalnum() or character.isspace() or character == "▁" for character in text)


def _starts(tokens: Iterable[str]) -> str:
    """Return a pattern for the first character of each token, which may begin inside another token."""
    by_first: dict[str, list[str]] = {}
    for token in tokens:
        by_first.setdefault(token[0], []).append(token[1:])
    branches = []
    for first, rests in sorted(by_first.items()):
        branches.append(f"{re.escape(first)}(?={_any_of(rests)})")
    return "|".join(branches)


def _any_of(texts: Iterable[str]) -> str:
    """Return a pattern for the longest of the texts at a place.

    Texts with a common beginning share it, so that the pattern stays fast with thousands of texts.
    """
    by_first: dict[str, list[str]] = {}
    for text in texts:
        by_first.setdefault(text[:1], []).append(text)
    branches = []
    for first, group in sorted(by_first.items()):
        if first:
            start = commonprefix(group)  # noqa: RUF071  of texts, not of paths
            branches.append(re.escape(start) + _any_of([text[len(start) :] for text in group]))
    if not branches:
        return ""
    optional = "?" if "" in by_first else ""
    return f"(?:{'|'.join(branches)}){optional}"
