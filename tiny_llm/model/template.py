"""Chat templates: from messages to the text that the model was trained on.

A model directory names its templates in chat_template.jinja, additional_chat_templates/ or tokenizer_config.json; the
one called "tool_use", where there is one, is for conversations with tools.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Template

from tiny_llm.config.fields import JsonFields, require
from tiny_llm.model.allowance import CURRENT, OBJECT, Allowance, LimitError
from tiny_llm.model.controls import Controls, Marker, unused_character
from tiny_llm.model.files import read_bytes
from tiny_llm.model.messages import Copy, Mark, checked_messages, checked_tools
from tiny_llm.model.rendered import Rendered
from tiny_llm.model.template_sandbox import Environment, RefusalError

DIRECTORY = "additional_chat_templates"
OPEN, CLOSE = "<think>", "</think>"
LONGEST = 100_000  # characters of a template; the longest known have a third of it
TAGS = 2_500  # {{ … }} and {% … %} in it
RESERVED = ("messages", "tools", "add_generation_prompt")


class ChatTemplates:
    """The templates of a model. `special`: the texts of bos_token and the like. `source`: the model's directory."""

    def __init__(self, texts: Mapping[str, str], special: Mapping[str, str], controls: Controls, source: str):
        self.texts = texts
        self.special = special
        self.controls = controls
        self.source = source
        self.environment = Environment()
        self.compiled: dict[str, Template] = {}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        special_tokens_in_messages: bool,
        settings: Mapping[str, Any],
    ) -> Rendered:
        """Return the prompt; see `Tokenizer.render`."""
        name = "tool_use" if tools and "tool_use" in self.texts else "default"
        found = f"only {', '.join(sorted(self.texts))}" if self.texts else "none"
        require(
            name in self.texts,
            f"{self.source}: expected a chat template, found {found}; give a plain text prompt or add "
            "chat_template.jinja",
        )
        for key in RESERVED:
            require(key not in settings, f"template settings: the name {key!r} is reserved; rename the setting")
        given: list[str] = []
        context = _checked(messages, tools, settings, lambda role: _collector(given))
        mark = unused_character([self.texts[name], *given])
        if not special_tokens_in_messages:
            context = self._marked(context, mark)
        context = {**self.special, "documents": None, **context}
        size = sum(map(len, given)) + OBJECT * len(given)
        text = self._run(name, {**context, "add_generation_prompt": add_generation_prompt}, size, mark)
        opens = False
        if add_generation_prompt and OPEN in text:
            added = self._generation_prompt(name, context, text, size, mark)
            opens = added.rfind(OPEN) > added.rfind(CLOSE)
        if special_tokens_in_messages:
            return Rendered(text, opens)
        return self._without_marks(text, mark, opens)

    def unused_character(self, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
        """Return a character that is in none of the messages, tools and settings. There may be no messages."""
        given: list[str] = []
        others = {key: value for key, value in settings.items() if key != "tools"}
        empty = {"role": "user", "content": ""}
        _checked([*messages, empty], settings.get("tools"), others, lambda role: _collector(given))
        return unused_character([*self.texts.values(), *given])

    def _marked(self, context: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """Return a template's input with marks at the places that spell a control token."""
        everywhere = Marker(self.controls.tokens, mark)
        own = Marker(self.controls.special, mark)  # the model itself wrote the other tokens in its turns
        settings = {key: value for key, value in context.items() if key not in RESERVED}
        marks = {"assistant": own}
        return _checked(context["messages"], context["tools"], settings, lambda role: marks.get(role, everywhere))

    def _generation_prompt(self, name: str, context: Mapping[str, Any], text: str, size: int, mark: str) -> str:
        """Return the text that the template puts behind the last message of the prompt `text`.

        A template leaves it out if no generation prompt is asked for. Some templates always write one: then replace the
        last message's content by the mark, and return the text behind the mark.
        """
        try:
            bare = self._run(name, {**context, "add_generation_prompt": False}, size, mark)
            if bare != text and text.startswith(bare):
                return text[len(bare) :]
            *others, last = context["messages"]
            shown = {**context, "messages": [*others, {"role": last["role"], "content": mark}]}
            marked = self._run(name, {**shown, "add_generation_prompt": True}, size, mark)
        except ValueError:
            return ""
        return marked.rpartition(mark)[2] if mark in marked else ""

    def _run(self, name: str, context: Mapping[str, Any], size: int, mark: str) -> str:
        """Run a template within its limits."""
        try:
            text = self._limited(self._compile(name), context, size)
        except Exception as error:  # a template is a program of the model's: anything can go wrong in it
            raise ValueError(f"{self.source}: the chat template {_describe_error(error).replace(mark, '')}") from error
        for form in (f"\\u{ord(mark):04x}", quote(mark)):  # a filter may have escaped it
            text = text.replace(form, mark)
        return text

    def _limited(self, template: Template, context: Mapping[str, Any], size: int) -> str:
        before = CURRENT.set(Allowance(size))
        try:
            return template.render(context)
        finally:
            CURRENT.reset(before)

    def _compile(self, name: str) -> Template:
        if name not in self.compiled:
            text = self.texts[name]
            tags = text.count("{{") + text.count("{%")
            if len(text) > LONGEST:
                raise LimitError(f"it has {len(text)} characters", str(LONGEST))
            if tags > TAGS:
                raise LimitError(f"it has {tags} tags", str(TAGS))
            self.compiled[name] = self.environment.from_string(text)
        return self.compiled[name]

    def _without_marks(self, text: str, mark: str, opens_thought: bool) -> Rendered:
        """Return the text without marks, with the places of the template's control tokens if messages spell others."""
        plain = text.replace(mark, "")
        if plain == text and not self.controls.normalizer_can_spell:
            return Rendered(plain, opens_thought)
        controls = self.controls.find(text, mark)
        if controls == self.controls.find(plain, mark) and not self.controls.normalizer_can_spell:
            return Rendered(plain, opens_thought)
        return Rendered(plain, opens_thought, controls)


def _describe_error(error: Exception) -> str:
    """Describe a template's error: it refused its input, exceeded a limit, or failed."""
    text = f"{error!s:.500}" or type(error).__name__
    if isinstance(error, RefusalError):
        return f"refuses the messages: {text}"
    if isinstance(error, LimitError):
        return f"was stopped: {text}; shorten the messages, or correct the template"
    return f"failed: {text}"


def read_templates(directory: Path, fields: JsonFields) -> dict[str, str]:
    """Return a model's templates by name.

    Files come before the entry in tokenizer_config.json, which is a text or a list of {"name", "template"}.
    """
    files = {"default": directory / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((directory / DIRECTORY).glob("*.jinja"))}
    templates = {name: _read_text(file) for name, file in files.items() if file.exists()}
    if templates:
        return templates
    value = fields.data.get("chat_template")
    if value is None:
        return {}
    named = value if isinstance(value, list) else [{"name": "default", "template": value}]
    for item in named:
        name, text = (item.get("name"), item.get("template")) if isinstance(item, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            expected = "expected a text or a list of names and templates"
            raise ValueError(f"{fields.source}: chat_template: {expected}, found {value!r:.100}")
        templates[name] = text
    return templates


def _read_text(file: Path) -> str:
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8 text, found something else: {error}") from error


def _checked(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    settings: Mapping[str, Any],
    mark_for: Callable[[str], Mark],
) -> dict[str, Any]:
    """Return checked copies of a template's input, their texts passed through `mark_for(role)`."""
    mark = mark_for("")
    context = {key: Copy(mark).value(value, f"{key:.50}") for key, value in settings.items()}
    context["messages"] = checked_messages(messages, mark_for)
    context["tools"] = checked_tools(tools, mark)
    return context


def _collector(texts: list[str]) -> Mark:
    """Return a mark that appends each text to a list and returns it unchanged."""

    def collect(text: str, *, borders: bool = True, inside: bool = False) -> str:
        texts.append(text)
        return text

    return collect
