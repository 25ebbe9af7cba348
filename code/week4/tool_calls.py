"""Find the tool calls in an answer while its text comes, in the form that the model's chat template shows.

hermes  <tool_call>\\n{"name": "add", "arguments": {"a": 1}}\\n</tool_call>
Qwen    <tool_call>\\n<function=add>\\n<parameter=a>\\n1\\n</parameter>\\n</function>\\n</tool_call>

The content of the answer is the text before the first call, without the white space in front of the tag: the chat
template writes that itself when the answer comes back in the next prompt. Text between calls is dropped.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from tiny_llm.course import NotDone
from tiny_llm.decode.parts import AnswerPart, CallArguments, CallBegin, Content
from tiny_llm.decode.tool_values import Schema, dump_json, load_json, properties_of, value_of

OPEN_CALL, CLOSE_CALL = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION, END_PARAMETER = "<function=", "</function>", "</parameter>"
# up to the arguments; a name with other characters is read when its call is whole
HERMES_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\<]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
XML_HEAD = re.compile(r"\s*<function=([^<>\n]+)>")
XML_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)</function>\s*", re.DOTALL)
# the next parameter or its beginning ends a parameter whose closing tag the model forgot
XML_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|\Z)", re.DOTALL)
WHOLE_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*?)</parameter>", re.DOTALL)
JSON_MARK = re.compile(r'["\\{}]')


class CallForm(Enum):
    """How a model writes its tool calls."""

    HERMES = "hermes"
    XML = "xml"


class ToolCall(NamedTuple):
    """A whole call. `arguments`: a JSON object as text."""

    name: str
    arguments: str


def call_form(templates: Mapping[str, str]) -> CallForm | None:
    """Return the form of calls that a model's chat templates show to the model; None where they show no calls."""
    template = templates.get("tool_use", templates.get("default", ""))
    if FUNCTION in template:
        return CallForm.XML
    return CallForm.HERMES if OPEN_CALL in template else None


class ToolCallParser:
    """Turns text that comes in pieces into content and calls. How the text is cut makes no difference to the result.

    A call is passed on when it is whole, because a text that fails to parse is no call: it is content, as it stands,
    with all text behind it. Only a tag that may have begun, a call that is not whole, and white space in front of
    either are held back. At the end of the text the closing `</tool_call>` may be missing.

    `constrained`: a grammar guarantees that each call is well formed and that its arguments fit the tool's schema.
    Then nothing has to be taken back, and a call is passed on while it is generated: its name when it is complete, and
    then its arguments, in the hermes form as they come and in Qwen's form a parameter at a time.

    `schemas` has the JSON schema of each tool's arguments, by which the parameters of Qwen's form get their types.
    """

    def __init__(self, form: CallForm, schemas: Mapping[str, Schema], constrained: bool = False):
        self.form, self.schemas, self.constrained = form, schemas, constrained
        self._calls = 0
        self._held = ""  # the text that has not been passed on
        self._place = CallPlace.BEFORE
        self._closing = CLOSE_CALL  # the tag that ends the open call
        self._body = 0  # where the open call's text begins in `_held`, behind the opening tag
        self._arguments: ArgumentsReader | None = None
        self._openings = (OPEN_CALL,) if form is CallForm.HERMES else (OPEN_CALL, FUNCTION)

    def feed(self, text: str) -> list[AnswerPart]:
        """Return the parts that the next piece of text completes."""
        self._held += text
        parts: list[AnswerPart] = []
        moved = True
        while moved:
            moved = self._move(parts)
        return parts

    def finish(self) -> list[AnswerPart]:
        """Return the parts that were held back, once no more text comes."""
        parts: list[AnswerPart] = []
        if self._place is CallPlace.CALL and self._call(self._held[self._body :], parts):
            return parts
        if self._place in (CallPlace.BEFORE, CallPlace.CALL):
            self._say(len(self._held), parts)
        return parts

    def _move(self, parts: list[AnswerPart]) -> bool:
        """Add to `parts` what is known now. Return whether another place of the text was reached."""
        if self._place is CallPlace.CALL:
            return self._head(parts) or self._whole(parts)
        if self._place is CallPlace.ARGUMENTS:
            return self._argument(parts)
        if self._place is CallPlace.FAILED:
            self._say(len(self._held), parts)
            return False
        return self._open(parts)

    def _open(self, parts: list[AnswerPart]) -> bool:
        """Find the next opening tag. The text before it is content, or is dropped behind a call."""
        found = [(self._held.find(tag), tag) for tag in self._openings if tag in self._held]
        at, tag = min(found) if found else (len(self._held) - unfinished_tag(self._held, self._openings), "")
        before = self._held[:at]
        if self._place is CallPlace.BETWEEN:
            self._held = self._held[at:]
            blank = 0
        else:
            shown = len(before.rstrip())
            self._say(shown, parts)
            blank = at - shown
        if not found:
            return False
        self._place = CallPlace.CALL
        self._closing = CLOSE_CALL if tag == OPEN_CALL else END_FUNCTION
        self._body = blank + (len(tag) if tag == OPEN_CALL else 0)
        return True

    def _head(self, parts: list[AnswerPart]) -> bool:
        """Pass on the name of a constrained call, if it is complete."""
        head = HERMES_HEAD if self.form is CallForm.HERMES else XML_HEAD
        match = head.match(self._held, self._body) if self.constrained else None
        if match is None:
            return False
        name = match[1]
        if self.form is CallForm.HERMES:
            self._arguments = JsonArguments()
        else:
            self._arguments = XmlArguments(self.schemas.get(name, {}))
        parts.append(CallBegin(self._calls, name))
        self._held = self._held[match.end() :]
        self._place = CallPlace.ARGUMENTS
        return True

    def _argument(self, parts: list[AnswerPart]) -> bool:
        """Pass on the next piece of a constrained call's arguments."""
        assert self._arguments is not None
        text, rest = self._arguments.feed(self._held)
        if text:
            parts.append(CallArguments(self._calls, text))
        self._held = rest or ""
        if rest is None:
            return False
        self._calls += 1
        self._place = CallPlace.BETWEEN
        return True

    def _whole(self, parts: list[AnswerPart]) -> bool:
        """Pass on the open call, if its closing tag is there. A call that fails to parse becomes content."""
        at = self._held.find(self._closing, self._body)
        if at < 0:
            return False
        end = at + len(self._closing)
        body = self._held[self._body : at if self._closing == CLOSE_CALL else end]
        if self._call(body, parts):
            self._held = self._held[end:]
            self._place = CallPlace.BETWEEN
        else:
            self._place = CallPlace.FAILED
        return True

    def _call(self, body: str, parts: list[AnswerPart]) -> bool:
        """Add the call that a text between the tags stands for. Return False where the text fails to parse."""
        call = read_hermes(body) if self.form is CallForm.HERMES else read_xml(body, self.schemas)
        if call is None:
            return False
        parts.append(CallBegin(self._calls, call.name))
        parts.append(CallArguments(self._calls, call.arguments))
        self._calls += 1
        return True

    def _say(self, length: int, parts: list[AnswerPart]) -> None:
        """Pass on the first `length` characters of the held text as content."""
        if length:
            parts.append(Content(self._held[:length]))
        self._held = self._held[length:]


class CallPlace(Enum):
    """The place of the next character."""

    BEFORE = "before the first call"
    CALL = "in a call that is held back"
    ARGUMENTS = "in the arguments of a call that was passed on"
    BETWEEN = "behind a call"
    FAILED = "in or behind a call that failed to parse"


def unfinished_tag(text: str, tags: Sequence[str]) -> int:
    """Return the number of characters at the end of a text that may begin one of the tags, 0 if there are none.

    Of several numbers it is the largest. A tag that is whole has begun, and does not count.
    """
    # YOUR CODE (w4.2.2): how much of the text must be held back
    raise NotDone("w4.2.2")


def read_hermes(body: str) -> ToolCall | None:
    """Return the call that is spelled as {"name": …, "arguments": {…}}; None for another text.

    The name is a text of at least one character. Missing or empty arguments are {}. The arguments are written anew by
    `dump_json`, so that all models' calls are spelled alike.
    """
    # YOUR CODE (w4.2.3): a call, or None
    raise NotDone("w4.2.3")


def read_xml(body: str, schemas: Mapping[str, Schema]) -> ToolCall | None:
    """Return the call that is spelled in tags, its values typed by the tool's schema; None for another text."""
    function = XML_FUNCTION.fullmatch(body)
    if function is None:
        return None
    schema = schemas.get(function[1], {})
    inside = function[2].rstrip()
    arguments = {}
    place = 0
    while place < len(inside):
        parameter = XML_PARAMETER.match(inside, place)
        if parameter is None:
            return None
        arguments[parameter[1]] = _xml_value(parameter[1], parameter[2], schema)
        place = parameter.end()
    try:
        return ToolCall(function[1], dump_json(arguments))
    except ValueError:
        return None


def _xml_value(name: str, text: str, schema: Schema) -> object:
    """Return a parameter's value. One line break at each end belongs to the tags."""
    inner = text.removeprefix("\n").removesuffix("\n")
    return value_of(inner, properties_of(schema).get(name), schema)


class ArgumentsReader(Protocol):
    """Reads the arguments of a constrained call while they come."""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the JSON text that is complete now, and the text behind the arguments, None while they go on."""
        ...


class JsonArguments:
    """Passes on a JSON object up to its last brace.

    `_depth` counts the braces that are open. `_escaped`: the text so far ends with a backslash, in a string, that
    escapes the next character.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the part of the text that belongs to the object, and the rest, None while the object goes on.

        The first character of all is the object's opening brace. However the text is cut, nothing is held back, and
        each character is looked at once.
        """
        # YOUR CODE (w4.2.4): where the object ends
        raise NotDone("w4.2.4")


class XmlArguments:
    """Writes the parameters of a function as a JSON object, each when its closing tag is there."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self._held = ""
        self._opened = False

    def feed(self, text: str) -> tuple[str, str | None]:
        self._held += text
        written = ""
        while END_PARAMETER in self._held and (match := WHOLE_PARAMETER.match(self._held)):
            value = _xml_value(match[1], match[2], self.schema)
            written += f"{self._separator()}{dump_json(match[1])}: {dump_json(value)}"
            self._held = self._held[match.end() :]
        rest = self._held.lstrip()
        if not rest.startswith(END_FUNCTION):
            return written, None
        closing = "}" if self._opened else "{}"
        return written + closing, rest.removeprefix(END_FUNCTION)

    def _separator(self) -> str:
        first = not self._opened
        self._opened = True
        return "{" if first else ", "
