"""The nouns of an agent: its model, a reply with its calls, events, limits and the rules of approval."""

import posixpath
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from fnmatch import fnmatch
from typing import Any, NamedTuple, Protocol

from tiny_llm.config.fields import is_finite, require, shown
from tiny_llm.decode.reply import AnswerPart

ChatMessages = Sequence[Mapping[str, Any]]
ToolSchemas = Sequence[Mapping[str, Any]]


class ReplyEnd(NamedTuple):
    """The end of a model's reply, and what it took. `cached_tokens`: of the prompt, found in the prefix cache."""

    finish_reason: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


class ChatModel(Protocol):
    """A model that answers chat messages and may call tools."""

    context: int

    def count(self, messages: ChatMessages, tools: ToolSchemas) -> int:
        """Return the number of tokens of a prompt."""
        ...

    def reply(
        self, messages: ChatMessages, tools: ToolSchemas, most: int
    ) -> AsyncGenerator[AnswerPart | ReplyEnd, None]:
        """Yield the parts of an answer of at most `most` tokens, and last its end. Closing early cancels it."""
        ...


class AgentCall(NamedTuple):
    """A tool call of a reply. `arguments` is None where `text` is no JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None
    text: str

    @property
    def path(self) -> str | None:
        """The path that the call is about, without "." and "..", as rules of approval spell it; None without one."""
        found = (self.arguments or {}).get("path")
        if not isinstance(found, str):
            return None
        path = posixpath.normpath(found)
        if path.startswith("/"):
            return "/" + path.lstrip("/")
        return "" if path == "." else path


class AgentReply(NamedTuple):
    """A whole reply: its thought, its text and its calls in order."""

    reasoning: str
    content: str
    calls: tuple[AgentCall, ...]


class AgentEvent(NamedTuple):
    """Something that happened in a run: a line of its trace.

    kinds: text and reasoning (a piece of the reply, not in the trace), user, assistant, begin (a call begins to run),
    change (of a file), result, compact (messages were dropped), end.
    """

    kind: str
    data: Mapping[str, Any]


class Approval(Enum):
    """What happens to a call: it runs, the user is asked, or it is refused."""

    RUN = "run"
    ASK = "ask"
    REFUSE = "refuse"


@dataclass(frozen=True)
class ApprovalRules:
    """Which calls with effects run without a question, and which calls never run.

    A rule is the name of a tool, or "name:pattern" with a pattern for the path, such as "write_file:notes/*". `deny`
    comes before `allow`, and ignores capitals. An absolute path may lead to the same file: a pattern of `deny` is about
    its end, too. `everything`: as with --yes, allow all that is not denied.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    everything: bool = False

    def allows(self, call: AgentCall) -> bool:
        """Return whether a rule allows the call."""
        return self.everything or any(matches(rule, call.name, call.path) for rule in self.allow)

    def denies(self, call: AgentCall) -> bool:
        """Return whether a rule forbids the call."""
        name = call.name.casefold()
        path = None if call.path is None else call.path.casefold()
        for rule in self.deny:
            tool, _, pattern = rule.casefold().partition(":")
            if matches(f"{tool}:{pattern}", name, path):
                return True
            if pattern and path is not None and path.startswith("/") and matches(f"{tool}:*/{pattern}", name, path):
                return True
        return False

    def check(self, names: Collection[str]) -> None:
        """Raise ValueError for a rule about none of the tools with these names: it would have no effect."""
        for option, rules in (("allow", self.allow), ("deny", self.deny)):
            for rule in rules:
                tool = rule.partition(":")[0]
                found = any(fnmatch(name.casefold(), tool.casefold()) for name in names)
                require(found, f"{option}: expected one of the tools {', '.join(names)}, found {shown(tool)}")


def matches(rule: str, name: str, path: str | None) -> bool:
    """Return whether a rule is about a tool of this name and this path."""
    tool, _, pattern = rule.partition(":")
    if not fnmatch(name, tool):
        return False
    return not pattern or (path is not None and fnmatch(path, pattern))


@dataclass(frozen=True)
class AgentLimits:
    """The bounds of a run. Raises ValueError for a limit that is not above 0.

    `steps`: replies of the model. `tokens`: all that it writes; `answer_tokens`: in one reply. `seconds`: of the run;
    `tool_seconds`: of one call. `calls`: in one reply. `repeats`: equal calls before the run ends.
    """

    steps: int = 12
    tokens: int = 8_000
    answer_tokens: int = 1_024
    seconds: float = 600.0
    tool_seconds: float = 30.0
    calls: int = 8
    repeats: int = 3

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            ok = is_finite(value) and value > 0
            require(ok, f"{each.name}: expected a number above 0, found {shown(value)}")


Approve = Callable[[AgentCall, str], Awaitable[bool]]


async def refuse_all(call: AgentCall, reason: str) -> bool:
    """Approve nothing: there is no user to ask."""
    return False
