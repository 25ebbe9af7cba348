"""Text to token ids and back, and chat messages to text by the model's own template."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from tiny_llm.config.fields import JsonFields
from tiny_llm.model.controls import Controls
from tiny_llm.model.detokenizer import BytesDetokenizer, Detokenizer, Pieces, UnitsDetokenizer
from tiny_llm.model.directory import eos_ids, read_bytes, read_json
from tiny_llm.model.length import LeastTokens
from tiny_llm.model.messages import as_text
from tiny_llm.model.rendered import Rendered
from tiny_llm.model.template import ChatTemplates, read_templates
from tiny_llm.model.tokenizer_keys import check_tokenizer_config


class TooLongError(ValueError):
    """A prompt has more tokens than it may have; `found` says how many, as far as they were counted."""

    def __init__(self, found: str, limit: int):
        super().__init__(f"prompt: expected at most {limit} tokens, found {found}; shorten the prompt")
        self.found = found


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. `templates`: its chat templates by name; `special`: the texts of bos_token and the like."""

    backend: tokenizers.Tokenizer
    eos_token_ids: frozenset[int]
    templates: Mapping[str, str] = field(default_factory=dict)
    special: Mapping[str, str] = field(default_factory=dict)
    source: str = "tokenizer"

    @classmethod
    def from_dir(cls, directory: Path) -> "Tokenizer":
        """Read tokenizer.json, tokenizer_config.json and the templates. Raises ValueError naming the broken file."""
        file = directory / "tokenizer.json"
        text = read_bytes(file)
        try:
            backend = tokenizers.Tokenizer.from_buffer(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{file}: expected a tokenizer, found something else: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        fields = read_json(directory / "tokenizer_config.json", optional=True)
        check_tokenizer_config(fields, backend)
        special = _special_tokens(fields)
        eos = eos_ids(directory)
        if eos is None:
            eos = frozenset(i for i in [backend.token_to_id(special.get("eos_token", ""))] if i is not None)
        return cls(backend, eos, read_templates(directory, fields), special, str(directory))

    @property
    def vocab_size(self) -> int:
        """Number of ids with a text; a model's own vocab_size is often padded beyond it."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool = False, limit: int | None = None) -> list[int]:
        """Return the ids of a text.

        In a plain text, special tokens may be spelled out. In a text that `render` made, only the template's own are
        tokens; what messages spell is text. `add_special_tokens` adds to a plain text what tokenizer.json's
        post-processor adds (its beginning-of-text token, say), unless the text has it; a template brings its own.

        Raises ValueError for what is no text, and for more than `limit` tokens: before tokenizing where the length
        of the text alone says so.
        """
        as_text(text, "prompt")
        least = 0 if limit is None or len(text) <= limit else self._least_tokens(text, limit)
        if limit is not None and least > limit:
            raise TooLongError(f"at least {least}", limit)
        if isinstance(text, Rendered):
            tokens = self._controls.encode(text)
        else:
            tokens = self.backend.encode(text, add_special_tokens=False).ids
            if add_special_tokens:
                tokens = self._with_added(tokens)
        if limit is not None and len(tokens) > limit:
            raise TooLongError(str(len(tokens)), limit)
        return tokens

    def decode(self, tokens: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return self.backend.decode(list(tokens), skip_special_tokens=not keep_special)

    def token(self, token: int) -> str:
        """Text of a single id, special or not."""
        return self.decode([token], keep_special=True)

    def detokenizer(self, *, keep_special: bool = False) -> Detokenizer:
        """Return what makes text of ids as they come; its pieces together are the text that `decode` gives."""
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

        Only the template writes control tokens: where messages, tools or settings spell one, `encode` takes it for
        text. In the assistant's turns only special tokens are text, because the model itself wrote tags such as
        <think>. `special_tokens_in_messages` switches this off: every token that is spelled out is a token.

        `template_kwargs` are the template's own, such as enable_thinking. Raises ValueError where the model has no
        template, a message or tool is malformed, or the template refuses or takes too long.
        """
        return self._chat.render(messages, tools, add_generation_prompt, special_tokens_in_messages, template_kwargs)

    def head(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> int:
        """How many tokens come before the user's first words: system prompt, tools, the template's settings.

        0 where nobody is the user, or the template refuses messages that end there.
        """
        first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), None)
        if first is None:
            return 0
        try:
            here = self._chat.unused_character(messages[:first], template_kwargs)
            text = self.render([*messages[:first], {"role": "user", "content": here}], **template_kwargs)
        except ValueError:
            return 0
        return len(self.encode(text.before(here)))

    def _with_added(self, tokens: list[int]) -> list[int]:
        """Return the ids with what the post-processor puts before and behind, unless they have it."""
        before, behind = self._added
        if before and tokens[: len(before)] != before:
            tokens = [*before, *tokens]
        if behind and tokens[-len(behind) :] != behind:
            tokens = [*tokens, *behind]
        return tokens

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        """What the post-processor puts before and behind a text."""
        encoding = self.backend.encode("a", add_special_tokens=True)
        own = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
        if not own:
            return encoding.ids, []
        return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]

    @cached_property
    def _controls(self) -> Controls:
        return Controls(self.backend)

    @cached_property
    def _chat(self) -> ChatTemplates:
        return ChatTemplates(self.templates, self.special, self._controls, self.source)

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.backend)

    @cached_property
    def _least_tokens(self) -> LeastTokens:
        return LeastTokens(self.backend)


def _special_tokens(fields: JsonFields) -> dict[str, str]:
    """{"eos_token": text, …} from tokenizer_config.json, where each is a text or {"content": text}."""
    special = {}
    for name, value in fields.data.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            special[name] = text
    return special
