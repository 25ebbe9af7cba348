"""Text to token ids and back, and chat messages to text by the model's own template.

A `Detokenizer` turns ids into text while they come, at the same cost for each token. A character may span several
tokens, and a token's text may depend on its neighbours; both detokenizers keep only the tokens that are not yet text:

BytesDetokenizer  for byte-level vocabularies (GPT-2, Qwen, Llama 3): each token stands for bytes
UnitsDetokenizer  for all others (SentencePiece and the like): asks the library for a token and the one before it
"""

import codecs
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import pre_tokenizers

from tiny_llm.config.fields import JsonFields, as_text
from tiny_llm.model.controls import Controls
from tiny_llm.model.directory import eos_ids
from tiny_llm.model.length import LeastTokens
from tiny_llm.model.rendered import Rendered
from tiny_llm.model.source import ModelSource, open_source
from tiny_llm.model.template import ChatTemplates
from tiny_llm.model.tokenizer_keys import check_tokenizer_config


class TooLongError(ValueError):
    """A prompt has more tokens than allowed. `found`: its number of tokens, or "at least" so many."""

    def __init__(self, found: str, limit: int):
        super().__init__(f"prompt: expected at most {limit} tokens, found {found}; shorten the prompt")
        self.found = found


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer.

    `templates`: its chat templates by name. `special`: the texts of bos_token and the like. `source`: its path.
    """

    backend: tokenizers.Tokenizer
    eos_token_ids: frozenset[int]
    templates: Mapping[str, str] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    source: str = "tokenizer"

    @classmethod
    def from_dir(cls, model: Path | ModelSource) -> "Tokenizer":
        """Read a model's tokenizer, its settings and the templates. Raises ValueError naming the broken file."""
        source = open_source(model)
        backend = source.tokenizer()
        backend.no_truncation()
        backend.no_padding()
        fields = source.json("tokenizer_config.json", optional=True)
        check_tokenizer_config(fields, backend)
        special = _special_tokens(fields)
        eos = eos_ids(source)
        if eos is None:
            token = backend.token_to_id(special.get("eos_token", ""))
            eos = frozenset() if token is None else frozenset([token])
        return cls(backend, eos, source.templates(), special, str(source.path))

    @property
    def vocab_size(self) -> int:
        """The number of ids with a text; a model's own vocab_size is often padded beyond it."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def difference(self, other: "Tokenizer") -> str | None:
        """Return the first token that another tokenizer has under another id, in words; None where there is none.

        One may have more tokens than the other, at the end.
        """
        size = min(self.vocab_size, other.vocab_size)
        for token in range(size):
            mine, its = self.backend.id_to_token(token), other.backend.id_to_token(token)
            if mine != its:
                return f"token {token} is {its!r} instead of {mine!r}"
        return None

    def encode(self, text: str, *, add_special_tokens: bool = False, limit: int | None = None) -> list[int]:
        """Return the ids of a text.

        A plain text may spell special tokens. In a text that `render` made, only the template writes special tokens; if
        a message spells one, it is text. `add_special_tokens` adds the tokens that tokenizer.json's post-processor puts
        around a plain text, such as a beginning-of-text token, unless the text has them; a template writes its own.

        Raises ValueError if `text` is not a text that UTF-8 can write, and TooLongError if it has more than `limit`
        tokens: before tokenizing if the text's length alone shows it.
        """
        as_text(text, "prompt")
        if limit is not None and len(text) > limit:
            least = self._least_tokens(text, limit)
            if least > limit:
                raise TooLongError(f"at least {least}", limit)
        if isinstance(text, Rendered):
            tokens = self._controls.encode(text)
        else:
            # encode_batch lets other threads run meanwhile, which encode does not
            tokens = self.backend.encode_batch([text], add_special_tokens=False)[0].ids
            if add_special_tokens:
                tokens = self._with_added(tokens)
        if limit is not None and len(tokens) > limit:
            raise TooLongError(str(len(tokens)), limit)
        return tokens

    def decode(self, tokens: Iterable[int], *, keep_special: bool = False) -> str:
        """Return the text of ids. Bytes that are not UTF-8 become U+FFFD; ids beyond the vocabulary have no text."""
        return self.backend.decode(list(tokens), skip_special_tokens=not keep_special)

    def token(self, token: int) -> str:
        """Return the text of a single id, special or not."""
        return self.decode([token], keep_special=True)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a single id, special or not. They may be a part of a character."""
        piece = self._pieces.piece(token, keep_special=True)
        if piece is None:
            return b""
        if self._pieces.byte_level:
            return _bytes_of(piece)
        if self._pieces.byte_fallback and _is_byte_token(piece):
            return bytes([int(piece[3:5], 16)])
        return self.token(token).encode()

    def detokenizer(self, *, keep_special: bool = False) -> "Detokenizer":
        """Return a detokenizer for one sequence of ids; its pieces together are the text that `decode` returns."""
        if self._pieces.byte_level:
            return BytesDetokenizer(self._pieces, keep_special)
        return UnitsDetokenizer(self._pieces, keep_special)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        *,
        special_tokens_in_messages: bool = False,
        **template_kwargs: Any,
    ) -> Rendered:
        """Return the prompt that the model's chat template makes of `messages` [{"role", "content", …}].

        Only the template writes control tokens: if messages, tools or settings spell one, `encode` takes it for text.
        In the assistant's turns only special tokens become text, because the model itself wrote tags such as <think>.
        With `special_tokens_in_messages` every token that a message spells is a token.

        `template_kwargs` are the template's own settings, such as enable_thinking. Raises ValueError if the model has
        no template, a message or tool is malformed, or the template refuses or takes too long.
        """
        return self._chat.render(messages, tools, add_generation_prompt, special_tokens_in_messages, template_kwargs)

    def head(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> int:
        """Return the number of tokens before the user's first words: system prompt, tools, the template's settings.

        Return 0 if there is no user message, or the template refuses messages that end there.
        """
        roles = [message.get("role") for message in messages]
        if "user" not in roles:
            return 0
        before = messages[: roles.index("user")]
        try:
            here = self._chat.unused_character(before, template_kwargs)
            text = self.render([*before, {"role": "user", "content": here}], **template_kwargs)
        except ValueError:
            return 0
        return len(self.encode(text.before(here)))

    def _with_added(self, tokens: list[int]) -> list[int]:
        """Return the ids with the post-processor's tokens before and behind them, unless they have these tokens."""
        before, behind = self._added
        if before and tokens[: len(before)] != before:
            tokens = [*before, *tokens]
        if behind and tokens[-len(behind) :] != behind:
            tokens = [*tokens, *behind]
        return tokens

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """The tokens that the post-processor puts before and behind a text."""
        encoding = self.backend.encode("a", add_special_tokens=True)
        ids = encoding.ids
        own = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
        if not own:
            return ids, []
        end = own[-1] + 1
        return ids[: own[0]], ids[end:]

    @cached_property
    def _controls(self) -> Controls:
        return Controls(self.backend)

    @cached_property
    def _chat(self) -> ChatTemplates:
        return ChatTemplates(self.templates, self.special, self._controls, self.source)

    @cached_property
    def _pieces(self) -> "Pieces":
        return Pieces(self.backend)

    @cached_property
    def _least_tokens(self) -> LeastTokens:
        return LeastTokens(self.backend)


def _special_tokens(fields: JsonFields) -> dict[str, str]:
    """Return {"eos_token": text, …} of tokenizer_config.json, in which each is a text or {"content": text}."""
    special = {}
    for name, value in fields.data.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            special[name] = text
    return special


class Detokenizer(Protocol):
    """Turns tokens into text as they come: all texts of `add` and `finish` together are the text of all tokens."""

    def add(self, token: int) -> str:
        """Return the text that this token completes: "" inside a character."""
        ...

    def finish(self) -> str:
        """Return the rest of the text: the bytes of a character that was cut off, as U+FFFD."""
        ...


class BytesDetokenizer:
    """Detokenizer of a byte-level vocabulary: a piece is some bytes, which are decoded as they come."""

    def __init__(self, pieces: "Pieces", keep_special: bool):
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
    of it is UTF-8, so that its text is known at its end. To get the text of a unit, let the library decode the token
    before it together with the unit, and take off the text of that token alone.
    """

    def __init__(self, pieces: "Pieces", keep_special: bool):
        self.pieces = pieces
        self.keep_special = keep_special
        self.last: list[int] = []  # the last token with text, and perhaps an empty one behind it
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
        run = self.run
        self.run = []
        if not run:
            return ""
        return self._text(run)

    def _text(self, unit: list[int]) -> str:
        before = self._decode(self.last)
        both = self._decode(self.last + unit)
        if self.pieces.piece(unit[-1], self.keep_special):
            self.last = unit[-1:]
        else:  # an empty piece: the text of the next unit depends on the token before it, too
            self.last = [*self.last[:1], unit[-1]]
        return both[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self.pieces.backend.decode(tokens, skip_special_tokens=not self.keep_special)


class Pieces:
    """The vocabulary's piece for each id, and how pieces become text."""

    def __init__(self, backend: tokenizers.Tokenizer):
        self.backend = backend
        added = backend.get_added_tokens_decoder().values()
        self.special = frozenset(token.content for token in added if token.special)
        decoder = {}
        if backend.decoder is not None:
            decoder = json.loads(backend.decoder.__getstate__())
        types = _types(decoder)
        self.byte_level = [name for name in types if name != "Fuse"] == ["ByteLevel"]
        self.byte_fallback = "ByteFallback" in types

    def __deepcopy__(self, memo: object) -> "Pieces":
        return self  # it never changes, and a copy of the library's tokenizer takes seconds

    def piece(self, token: int, keep_special: bool) -> str | None:
        """Return the piece of an id; None for ids beyond the vocabulary and for special ones that are left out."""
        piece = self.backend.id_to_token(token)
        if piece is None or (piece in self.special and not keep_special):
            return None
        return piece


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's characters for the 256 bytes, which all byte-level vocabularies use.

    A printable Latin-1 character stands for its own byte; the characters from U+0100 on stand for the other bytes.
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
    """Return the bytes of a piece. A piece with other characters than the alphabet's, an added token, is plain text."""
    try:
        return bytes([BYTES[character] for character in piece])
    except KeyError:
        return piece.encode()


def _is_byte_token(piece: str) -> bool:
    """Return whether the library's ByteFallback takes this piece for a byte."""
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _types(decoder: dict[str, object]) -> list[str]:
    """Return the names of a decoder's parts, as tokenizer.json has them."""
    parts = decoder.get("decoders")
    if isinstance(parts, list):
        return [name for part in parts for name in _types(part)]
    return [str(decoder.get("type"))]
