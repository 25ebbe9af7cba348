"""Text to token ids and back, and chat messages to text by the model's own template."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from tiny_llm.config.fields import JsonFields, require
from tiny_llm.model.directory import eos_ids, read_bytes, read_json
from tiny_llm.model.tokenizer_keys import check_tokenizer_config

ROLES = ("system", "user", "assistant", "tool")
HERE = "\ue000"  # a character of private use, where the user's words will stand


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
        return cls(backend, eos, _templates(directory, fields), special, str(directory))

    @property
    def vocab_size(self) -> int:
        """Number of ids with a text; a model's own vocab_size is often padded beyond it."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which special tokens may be spelled out; none is added."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD, ids beyond the vocabulary nothing."""
        return self.backend.decode(list(tokens), skip_special_tokens=not keep_special)

    def token(self, token: int) -> str:
        """Text of a single id, special or not."""
        return self.decode([token], keep_special=True)

    def detokenizer(self, *, keep_special: bool = False) -> "StreamingDetokenizer":
        return StreamingDetokenizer(self, keep_special)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt that the model's chat template makes of `messages` [{"role", "content", …}].

        `template_kwargs` are the template's own, such as enable_thinking. Raises ValueError where the model has no
        template, a message is malformed or the template refuses.
        """
        name = "tool_use" if tools and "tool_use" in self.templates else "default"
        require(
            name in self.templates,
            f"{self.source}: expected a chat template, found none; give a plain text prompt or add chat_template.jinja",
        )
        settings = {**self.special, **template_kwargs, "add_generation_prompt": add_generation_prompt}
        chat = _checked(messages)
        try:
            return self._compiled[name].render(messages=chat, tools=tools, documents=None, **settings)
        except Exception as error:  # a template is a program of the model's: anything can go wrong in it
            raise ValueError(f"{self.source}: the chat template refuses: {error}") from error

    def head(self, messages: Sequence[Mapping[str, Any]], **template_kwargs: Any) -> int:
        """How many tokens come before the user's first words: system prompt, tools, the template's settings.

        0 where nobody is the user, or the template refuses messages that end there.
        """
        first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), None)
        if first is None:
            return 0
        try:
            text = self.render([*messages[:first], {"role": "user", "content": HERE}], **template_kwargs)
        except ValueError:
            return 0
        return len(self.encode(text.partition(HERE)[0]))

    @cached_property
    def _compiled(self) -> dict[str, Template]:
        """The templates, in the environment that Hugging Face templates are written for."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return {name: environment.from_string(text) for name, text in self.templates.items()}


class StreamingDetokenizer:
    """Text as tokens come: the pieces of `add` and `finish` together are the text that decoding all at once gives."""

    def __init__(self, tokenizer: Tokenizer, keep_special: bool):
        self.tokenizer, self.keep_special = tokenizer, keep_special
        self.stream = DecodeStream(skip_special_tokens=not keep_special)
        self.tokens: list[int] = []
        self.length = 0

    def add(self, token: int) -> str:
        """The text that this token completes, "" inside a character."""
        self.tokens.append(token)
        piece = self.stream.step(self.tokenizer.backend, token) or ""
        self.length += len(piece)
        return piece

    def finish(self) -> str:
        """What is left: a character cut off, as U+FFFD."""
        return self.tokenizer.decode(self.tokens, keep_special=self.keep_special)[self.length :]


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks a training target: here only what is inside."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _special_tokens(fields: JsonFields) -> dict[str, str]:
    """{"eos_token": text, …} from tokenizer_config.json, where each is a text or {"content": text}."""
    special = {}
    for name, value in fields.data.items():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            special[name] = text
    return special


def _templates(directory: Path, fields: JsonFields) -> dict[str, str]:
    """Templates by name: chat_template.jinja, else tokenizer_config.json's text or list of {"name", "template"}."""
    file = directory / "chat_template.jinja"
    if file.exists():
        try:
            return {"default": read_bytes(file).decode()}
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected UTF-8 text, found something else: {error}") from error
    value = fields.data.get("chat_template")
    if value is None:
        return {}
    named = value if isinstance(value, list) else [{"name": "default", "template": value}]
    templates: dict[str, str] = {}
    for item in named:
        name, text = (item.get("name"), item.get("template")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            expected = "expected a text or a list of names and templates"
            raise ValueError(f"{fields.source}: chat_template: {expected}, found {value!r:.100}")
        templates[name] = text
    return templates


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as templates expect them: content a text, thoughts under `reasoning_content`."""
    require(
        isinstance(messages, list | tuple) and len(messages) > 0,
        f"messages: expected a list of at least one message, found {messages!r:.100}",
    )
    return [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    require(isinstance(message, Mapping), f"{where}: expected role and content, found {message!r:.100}")
    role, content = message.get("role"), message.get("content")
    require(role in ROLES, f"{where}: role: expected one of {', '.join(ROLES)}, found {role!r:.100}")
    silent = content is None and bool(message.get("tool_calls"))
    require(isinstance(content, str) or silent, f"{where}: content: expected a text, found {content!r:.100}")
    checked = {**message, "content": content or ""}
    if checked.get("reasoning_content") is None and isinstance(checked.get("reasoning"), str):
        checked["reasoning_content"] = checked["reasoning"]
    return checked
