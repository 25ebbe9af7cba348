"""The built-in tools. Names, descriptions, schemas and results are those of config/builtin_tools.toml."""

import datetime
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tiny_llm.apps.agent.calculator import calculate
from tiny_llm.apps.agent.clock import Now, tell_time
from tiny_llm.apps.agent.files import Root, search
from tiny_llm.apps.agent.python import PythonLimits, can_confine, run_python
from tiny_llm.apps.agent.tools import AgentTool, RunTool, ToolArguments, ToolError
from tiny_llm.config.fields import require, shown
from tiny_llm.config.prompts import Passage, builtin_tools, passage_format

SHOWN = 4_000  # characters of a result that the model sees at once
OUTPUT = "output:"  # begins the path under which the rest of a long result is read
PASSAGES = 3
HTTP_SECONDS, HTTP_BYTES = 10, 1_000_000
FOREIGN = ("read_file", "search_files", "run_python", "search_documents")
NO_EFFECTS = ("calculator", "clock", "read_file", "search_files", "search_documents")


class Passages(Protocol):
    """Finds passages of the user's documents, called from any thread: `Documents`, for example."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        """Return the `k` best passages, best first."""
        ...


class LongOutputs:
    """Keeps results that are too long to show at once, so that `read_file` can read on in them."""

    def __init__(self, shown: int = SHOWN):
        self.shown = shown
        self._texts: list[str] = []

    def cut(self, text: str) -> str:
        """Return the text, or its beginning with a note on how to read on."""
        if len(text) <= self.shown:
            return text
        self._texts.append(text)
        path = f"{OUTPUT}{len(self._texts)}"
        return self._beginning(text, path, 1)

    def lines(self, path: str, text: str, first: int, last: int | None) -> str:
        """Return the lines `first` to `last` of a text, as many as can be shown at once."""
        lines = text.split("\n")
        chosen = "\n".join(lines[max(0, first - 1) : last])
        if len(chosen) <= self.shown:
            return chosen
        return self._beginning(chosen, path, first)

    def read(self, path: str) -> str | None:
        """Return the whole of a result that was cut; None for another path."""
        number = path.removeprefix(OUTPUT)
        if number == path or not number.isdecimal() or not 1 <= int(number) <= len(self._texts):
            return None
        return self._texts[int(number) - 1]

    def _beginning(self, text: str, path: str, first: int) -> str:
        shown = text[: self.shown]
        cut = shown.rfind("\n")
        if cut > 0:
            shown = shown[:cut]
            place = f"start_line {first + shown.count(chr(10)) + 1}"
        else:
            place = f"start_line {first + 1}; this line is longer than can be shown"
        return f"{shown}\n({len(shown)} of {len(text)} characters; read on in {path} with {place})"


class Builtin:
    """The functions behind the built-in tools, on one root and one clock."""

    def __init__(
        self,
        root: Root,
        outputs: LongOutputs,
        passages: Passages | None = None,
        now: Now = datetime.datetime.now,
        limits: PythonLimits | None = None,
    ):
        self.root, self.outputs, self.passages, self.now, self.limits = root, outputs, passages, now, limits

    def calculator(self, arguments: ToolArguments) -> str:
        return calculate(arguments["expression"])

    def clock(self, arguments: ToolArguments) -> str:
        return tell_time(arguments.get("date"), arguments.get("days"), arguments.get("until"), self.now)

    def read_file(self, arguments: ToolArguments) -> str:
        path = arguments["path"]
        text = self.outputs.read(path)
        if text is None:
            text = self.root.text(path)
        return self.outputs.lines(path, text, arguments.get("start_line", 1), arguments.get("end_line"))

    def search_files(self, arguments: ToolArguments) -> str:
        return "\n".join(search(self.root, arguments["pattern"], arguments.get("path", "")))

    def edit_file(self, arguments: ToolArguments) -> str:
        path, old, new = arguments["path"], arguments["old_string"], arguments["new_string"]
        text = self.root.text(path)
        count = text.count(old) if old else 0
        if count != 1:
            raise ToolError(f"text {'not found' if count == 0 else 'found more than once'} in {path}")
        self.root.write(path, text.replace(old, new))
        return f"Edited {path}."

    def write_file(self, arguments: ToolArguments) -> str:
        self.root.write(arguments["path"], arguments["content"])
        return f"Wrote {arguments['path']}."

    def run_python(self, arguments: ToolArguments) -> str:
        return run_python(arguments["code"], self.root.folder, self.limits).removesuffix("\n")

    def search_documents(self, arguments: ToolArguments) -> str:
        if self.passages is None:
            raise ToolError("no documents are indexed")
        return passage_format().lines(self.passages.search(arguments["query"], PASSAGES))


def make_builtin(functions: Builtin, names: Sequence[str] | None = None) -> list[AgentTool]:
    """Return the built-in tools, or those with the given names, in the order of builtin_tools.toml.

    Raises ValueError for a name that is none of theirs.
    """
    told = builtin_tools().tools
    unknown = [name for name in names or () if name not in told]
    require(not unknown, f"tools: unknown tool {shown(unknown)}; known are {', '.join(told)}")
    chosen = list(told) if names is None else [name for name in told if name in names]
    return [builtin_tool(name, getattr(functions, name)) for name in chosen]


def builtin_tool(name: str, run: RunTool) -> AgentTool:
    """Return a tool of builtin_tools.toml. `run` does its work; for an empty result the tool says its `empty` text."""
    told = builtin_tools().tools[name]

    def filled(arguments: ToolArguments) -> str:
        result = run(arguments)
        assert isinstance(result, str)
        return result if result.strip() else told.empty

    harmless = name in NO_EFFECTS or (name == "run_python" and can_confine())
    return AgentTool(
        name,
        told.description,
        told.schema["function"]["parameters"],
        filled,
        effects=not harmless,
        foreign=name in FOREIGN,
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # another host may not be the one that was approved
        return None


def http_get(arguments: Mapping[str, Any]) -> str:
    """Return the text at an address. Raises ToolError for another scheme than http and https, and for failures."""
    url = arguments["url"]
    if not url.startswith(("http://", "https://")):
        raise ToolError(f"not an address that begins with http:// or https://: {url}")
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(url, timeout=HTTP_SECONDS) as answer:
            data = answer.read(HTTP_BYTES)
    except (OSError, ValueError) as error:
        raise ToolError(f"{url}: {error}") from None
    return str(data.decode("utf-8", "replace"))


HTTP_GET = AgentTool(
    "http_get",
    "Read the text at a web address.",
    {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]},
    http_get,
    effects=True,  # an address can carry data away
    foreign=True,
)
