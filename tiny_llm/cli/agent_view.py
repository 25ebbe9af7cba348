"""What `tiny-llm agent` shows: the model's words on stdout; calls, results and questions on stderr."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tiny_llm.cli.process import state_dir
from tiny_llm.cli.session import remark
from tiny_llm.cli.terminal import dim, escaped, printable

if TYPE_CHECKING:
    from tiny_llm.apps.agent.nouns import AgentCall, AgentEvent
    from tiny_llm.apps.agent.sessions import SessionFolder

SHOWN = 300  # characters of arguments and of a result
REASONS = {
    "cancelled": "cancelled",
    "steps": "the model made as many replies as --steps allows",
    "tokens": "the model wrote as many tokens as a run allows",
    "time": "the run took as long as --seconds allows",
    "context": "the context is full",
    "repeats": "the model made the same call again and again",
}


def describe(reason: str) -> str:
    """Return in words why a run ended."""
    return REASONS.get(reason, reason)


class AgentView:
    """Shows events as they come. `whole`: replies come in one event, as in a session's file."""

    def __init__(self, whole: bool = False):
        self.whole = whole
        self._open = False  # a line of the model's text has begun

    def show(self, event: "AgentEvent") -> None:
        kind, data = event
        if kind == "text":
            print(printable(data["text"], sys.stdout), end="", flush=True)
            self._open = True
        elif kind == "reasoning":
            print(dim(printable(data["text"], sys.stderr), sys.stderr), end="", file=sys.stderr, flush=True)
        elif kind == "user" and self.whole:
            print(f"> {printable(data['text'], sys.stdout)}")
        elif kind == "assistant":
            self._reply(data)
        elif kind == "result":
            remark(f"{short(data['name'])} → {short(data['text'])}")
        elif kind == "compact":
            dropped = "; ".join(data["dropped"])
            remark(f"the context was full with {data['tokens']} tokens: the model no longer sees {escaped(dropped)}")
        elif kind == "change" and self.whole:
            remark(f"changed {escaped(data['path'])}")
        elif kind == "undo" and self.whole:
            remark(f"took back the change of {escaped(data['path'])}")

    def _reply(self, data: Mapping[str, Any]) -> None:
        if self.whole and data["content"]:
            print(printable(data["content"], sys.stdout))
        self.finish()
        for call in data["calls"]:
            remark(f"{short(call['name'])} {short(call['text'])}")

    def finish(self) -> None:
        """End the line of the model's text."""
        if self._open:
            print(flush=True)
        self._open = False


def short(text: str) -> str:
    """Return a text in one line, without control characters, cut where it is long."""
    line = escaped(text.replace("\n", "⏎"))
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}… ({len(text)} characters)"


async def ask_user(call: "AgentCall", reason: str) -> bool:
    """Ask at the terminal whether a call may run; without one, refuse."""
    if not sys.stdin.isatty():
        remark(f"{call.name} was not approved: {reason}, and there is no terminal to ask; --allow or --yes approve")
        return False
    remark(f"{call.name} {escaped(call.text)}")
    try:
        said = input(f"{call.name}: {reason}. Run it? [y/N] ")
    except EOFError:
        return False
    return said.strip().lower() in ("y", "yes")


def session_folder() -> "SessionFolder":
    """Return the sessions of this user: tiny-llm/sessions under XDG_STATE_HOME or ~/.local/state."""
    from tiny_llm.apps.agent.sessions import SessionFolder

    return SessionFolder(state_dir() / "sessions")
