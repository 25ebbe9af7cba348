"""With regular expressions and a state in one number."""

from tiny_llm.decode.tool_calls import ToolCall
from tiny_llm.decode.tool_values import dump_json, load_json


def unfinished_tag(text, tags):
    lengths = [0]
    for tag in tags:
        lengths += [n for n in range(len(tag)) if text[len(text) - n :] == tag[:n] and n <= len(text)]
    return max(lengths)


def read_hermes(body):
    try:
        found = load_json(body)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    name, arguments = found.get("name"), found.get("arguments") or {}
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    try:
        name.encode()
        return ToolCall(arguments=dump_json(arguments), name=name)
    except ValueError:
        return None


class JsonArguments:
    def feed(self, text):
        for place, letter in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif letter == "\\":
                self._escaped = self._in_string
            elif letter == '"':
                self._in_string ^= True
            elif not self._in_string:
                self._depth += (letter == "{") - (letter == "}")
                if letter == "}" and not self._depth:
                    return (text[: place + 1], text[place + 1 :])
        return (text, None)
