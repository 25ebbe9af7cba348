"""By hand."""

from tiny_llm.decode.tool_calls import ToolCall
from tiny_llm.decode.tool_values import dump_json, load_json


def unfinished_tag(text, tags):
    for start in range(max(0, len(text) - max(map(len, tags), default=0)), len(text)):
        end = text[start:]
        for tag in tags:
            if end != tag and tag.startswith(end):
                return len(end)
    return 0


def read_hermes(body):
    try:
        found = load_json(body)
        text = dump_json(found["name"])
        arguments = found.get("arguments")
        if not arguments:
            arguments = {}
        if not isinstance(found, dict) or type(found["name"]) is not str or text == '""':
            return None
        return ToolCall(found["name"], dump_json(arguments)) if hasattr(arguments, "items") else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


class JsonArguments:
    def feed(self, text):
        place = 0
        while place < len(text):
            letter = text[place]
            place += 1
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._in_string = False
                continue
            if letter == '"':
                self._in_string = True
            if letter == "{":
                self._depth += 1
            if letter == "}":
                self._depth -= 1
                if self._depth < 1:
                    return text[:place], text[place:]
        return text, None
