"""Token ids to text while they come, at the same cost for each token.

A character may span several tokens, and what a token looks like may depend on its neighbours. Both detokenizers keep
only the tokens that are not yet text:

BytesDetokenizer  for byte-level vocabularies (GPT-2, Qwen, Llama 3): each token stands for bytes
UnitsDetokenizer  for all others (SentencePiece and the like): asks the library for a token and the one before it
"""

import codecs
import json
from typing import Protocol

import tokenizers
from tokenizers import pre_tokenizers

UNDECODED = "\ufffd"  # what stands for bytes that are no character


class Detokenizer(Protocol):
    """Text as tokens come: the pieces of `add` and `finish` together are the text of decoding all at once."""

    def add(self, token: int) -> str:
        """Return the text that this token completes, "" inside a character."""
        ...

    def finish(self) -> str:
        """Return what is left: the bytes of a character that was cut off, as U+FFFD."""
        ...


class Pieces:
    """The piece of the vocabulary behind each id. `hidden`: the ids that `skip_special_tokens` leaves out."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        added = backend.get_added_tokens_decoder().values()
        self.special = frozenset(token.content for token in added if token.special)
        decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
        self.byte_level = _is_byte_level(decoder)
        self.byte_fallback = "ByteFallback" in _types(decoder)

    def piece(self, token: int, keep_special: bool) -> str | None:
        """Return the piece of an id; None for ids beyond the vocabulary and for special ones that are left out."""
        piece = self.backend.id_to_token(token)
        if piece is None or (piece in self.special and not keep_special):
            return None
        return piece


class BytesDetokenizer:
    """Detokenizer of a byte-level vocabulary: pieces are bytes, and bytes are decoded as they come."""

    def __init__(self, pieces: Pieces, keep_special: bool):
        self.pieces = pieces
        self.keep_special = keep_special
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        piece = self.pieces.piece(token, self.keep_special)
        if piece is None:
            return ""
        return self.decoder.decode(_bytes_of(piece))

    def finish(self) -> str:
        return self.decoder.decode(b"", final=True)


class UnitsDetokenizer:
    """Detokenizer of any other vocabulary, a unit of tokens at a time.

    A unit is one token, or a whole run of byte tokens (`<0xE4>`): the library turns a run into characters only if all
    of it is UTF-8, so that its text is known at its end. The text of a unit is what the library makes of it behind the
    token before it, less what it makes of that token alone.
    """

    def __init__(self, pieces: Pieces, keep_special: bool):
        self.pieces = pieces
        self.keep_special = keep_special
        self.last: list[int] = []  # the last token of the text so far, and an empty one that may follow it
        self.run: list[int] = []  # byte tokens that are not text yet

    def add(self, token: int) -> str:
        piece = self.pieces.piece(token, self.keep_special)
        if piece is None:
            return ""
        if self.pieces.byte_fallback and _is_byte_token(piece):
            self.run.append(token)
            return ""
        return self.finish() + self._text([token])

    def finish(self) -> str:
        run, self.run = self.run, []
        return self._text(run) if run else ""

    def _text(self, unit: list[int]) -> str:
        before = self._decode(self.last)
        both = self._decode(self.last + unit)
        if self.pieces.piece(unit[-1], self.keep_special):
            self.last = unit[-1:]
        else:  # the empty piece, which does not tell what stood before it
            self.last = [*self.last[:1], unit[-1]]
        return both[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.pieces.backend.decode(tokens, skip_special_tokens=not self.keep_special)


def _byte_alphabet() -> dict[str, int]:
    """Return the characters that stand for bytes in byte-level vocabularies, as GPT-2 chose them.

    A byte that is a printable Latin-1 character stands for itself; the others follow from U+0100 on.
    """
    alphabet = {}
    unprintable = 0
    for byte in range(256):
        character = chr(byte)
        if not "!" <= character <= "~" and not "¡" <= character <= "¬" and not "®" <= character <= "ÿ":
            character = chr(0x100 + unprintable)
            unprintable += 1
        alphabet[character] = byte
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    return alphabet


BYTES = _byte_alphabet()


def _bytes_of(piece: str) -> bytes:
    """Return the bytes of a piece. An added token with characters outside the alphabet stands for itself."""
    try:
        return bytes([BYTES[character] for character in piece])
    except KeyError:
        return piece.encode()


def _is_byte_token(piece: str) -> bool:
    """Whether the library's ByteFallback takes this piece for a byte."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _types(decoder: dict[str, object]) -> list[str]:
    """Return the names of a decoder's parts, as tokenizer.json has them."""
    parts = decoder.get("decoders")
    if isinstance(parts, list):
        return [name for part in parts for name in _types(part)]
    return [str(decoder.get("type"))]


def _is_byte_level(decoder: dict[str, object]) -> bool:
    return [name for name in _types(decoder) if name != "Fuse"] == ["ByteLevel"]
