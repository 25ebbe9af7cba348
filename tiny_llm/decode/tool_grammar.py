"""Grammars under which a model's tool calls are well formed and their arguments fit the tools' schemas.

auto      text without a call, or any text and then calls
required  one call or more, and no text
none      text without a call

The calls are in the form that the model's chat template shows, spelled exactly as the template writes them in the next
prompt, so that the prefix cache knows the answer. If the template knows thoughts, one may come first. A parameter in
Qwen's form that is a text keeps its `enum`; its `pattern` and lengths are not enforced, because it is no JSON string.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tiny_llm.config.fields import require, shown
from tiny_llm.config.structured import Structured
from tiny_llm.decode.thought import CLOSE, OPEN
from tiny_llm.decode.tool_calls import CLOSE_CALL, END_FUNCTION, FUNCTION, OPEN_CALL, CallForm
from tiny_llm.decode.tool_values import Schema, list_of, properties_of, resolved, tool_schemas, types_of
from tiny_llm.model.tokenizer import Tokenizer

ToolChoice = Literal["auto", "required", "none"]
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # as templates write JSON
END_VALUE = "\n</parameter>\n"
DEFINITIONS = ("$defs", "definitions")
# Text without tags; `count` is * or +. A tag that is a token is no text to llguidance, but letters can spell it, too.
WITHOUT_TAGS = r"/(?s:.{count})/ & ~/(?s:.*)({tags})(?s:.*)/"
VALUE = r"(/(?s:.*)/ & ~/(?s:.*)<\/parameter>(?s:.*)/) " + json.dumps(END_VALUE)


def call_grammar(
    tokenizer: Tokenizer,
    form: CallForm,
    tools: Sequence[Mapping[str, Any]],
    choice: ToolChoice = "auto",
    *,
    only: str | None = None,
    parallel: bool = True,
) -> Structured:
    """Return the grammar of an answer that may call `tools`, or must call the tool `only`.

    `parallel`: whether the answer may have more than one call. Raises ValueError for a tool that is not offered, and
    for a name that the form can't spell.
    """
    schemas = tool_schemas(tools)
    if only is not None:
        known = ", ".join(schemas)
        require(only in schemas, f"tool_choice: expected one of the tools {known}, found {shown(only)}")
        schemas = {only: schemas[only]}
        choice = "required"
    require(bool(schemas) or choice != "required", "tool_choice: expected at least one tool to call, found none")
    lines = _Lines(tokenizer)
    lines.free(form)
    thought = lines.thought()
    call = lines.calls(form, schemas, parallel) if schemas and choice != "none" else ""
    if choice == "required":
        lines.add("blank", r"/\n{1,2}/")
        start = f"{thought} blank? {lines.tag(OPEN_CALL)} {call}"
    elif call:
        start = f"{thought} (FREE? | lead {call})"
    else:
        start = f"{thought} FREE?"
    lines.add("start", start.strip())
    return Structured("lark", lines.text())


class _Lines:
    """The rules of a Lark grammar for llguidance."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokens = {token.content for token in tokenizer.backend.get_added_tokens_decoder().values()}
        self._thinks = any(OPEN in template for template in tokenizer.templates.values())
        self._rules: list[str] = []

    def add(self, name: str, rule: str) -> None:
        self._rules.append(f"{name}: {rule}")

    def text(self) -> str:
        return "\n".join(reversed(self._rules)) + "\n"

    def tag(self, tag: str) -> str:
        """Return a tag as the grammar spells it: as a token of its own, if the vocabulary has one."""
        return tag if tag in self._tokens else json.dumps(tag)

    def thought(self) -> str:
        """Add the rule of a thought, and return its optional use; "" for a model without thoughts."""
        if not self._thinks:
            return ""
        if {OPEN, CLOSE} <= self._tokens:
            self.add("REASONING", WITHOUT_TAGS.format(count="+", tags=r"<\/think>"))
            self.add("thought", f"{OPEN} REASONING? {CLOSE}")
        else:
            self.add("thought[lazy]", r"/<think>(?s:.*)<\/think>/")
        return "thought?"

    def free(self, form: CallForm) -> None:
        """Add FREE, text without a call, and `lead`, text up to the first opening tag."""
        tags = OPEN_CALL if form is CallForm.HERMES else f"{OPEN_CALL}|{FUNCTION}"
        self.add("FREE", WITHOUT_TAGS.format(count="+", tags=tags))
        if OPEN_CALL in self._tokens:
            self.add("lead", f"FREE? {OPEN_CALL}")
        else:
            before = WITHOUT_TAGS.format(count="*", tags=tags)
            self.add("lead[lazy]", f"({before}) {json.dumps(OPEN_CALL)}")

    def calls(self, form: CallForm, schemas: Mapping[str, Schema], parallel: bool) -> str:
        """Add the rules of the calls behind the first opening tag, and return their use."""
        for number, (name, schema) in enumerate(schemas.items()):
            if form is CallForm.HERMES:
                self._hermes(f"call_{number}", name, schema)
            else:
                self._xml(f"call_{number}", name, schema)
        each = " | ".join(f"call_{number}" for number in range(len(schemas)))
        self.add("call", f'"\\n" ({each}) "\\n" {self.tag(CLOSE_CALL)}')
        if form is CallForm.XML:
            self.add("value[lazy]", VALUE)
        return f'call ("\\n" {self.tag(OPEN_CALL)} call)*' if parallel else "call"

    def _hermes(self, rule: str, name: str, schema: Schema) -> None:
        head = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
        self.add(rule, f'{json.dumps(head)} %json {_json(_closed(schema))} "}}"')

    def _xml(self, rule: str, name: str, schema: Schema) -> None:
        required = list_of(schema, "required")
        parts = [json.dumps(f"{FUNCTION}{_spelled(name, 'tool')}>\n")]
        for number, (key, each) in enumerate(properties_of(schema).items()):
            parameter = f"{rule}_{number}"
            head = json.dumps(f"<parameter={_spelled(key, 'parameter')}>\n")
            self.add(parameter, f"{head} {_value(each, schema)}")
            parts.append(parameter if key in required else f"{parameter}?")
        parts.append(json.dumps(END_FUNCTION))
        self.add(rule, " ".join(parts))


def _closed(schema: Schema) -> Schema:
    """Return the schema of a tool's arguments, which has no other properties unless it says so."""
    closed = {"type": "object", **schema}
    if not schema or "properties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _value(schema: Any, root: Schema) -> str:
    """Return the grammar of a parameter's value in Qwen's form, up to the end of its closing tag."""
    found = resolved(schema, root)
    end = json.dumps(END_VALUE)
    values = [found["const"]] if "const" in found else list_of(found, "enum")
    if values:
        texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
        choices = " | ".join(json.dumps(text) for text in texts)
        return f"({choices}) {end}"
    types = types_of(found, root)
    if not types or "string" in types:
        return "value"
    definitions = {word: root[word] for word in DEFINITIONS if word in root}
    return f"%json {_json({**definitions, **found})} {end}"


def _json(schema: Schema) -> str:
    """Write a schema with the spaces that templates put between the parts of a JSON text."""
    return json.dumps({"x-guidance": SPACES, **schema})


def _spelled(name: str, kind: str) -> str:
    bad = any(letter in name for letter in "<>\n")
    require(not bad, f"tools: expected a {kind} name without <, > and line breaks, found {shown(name)}")
    return name
