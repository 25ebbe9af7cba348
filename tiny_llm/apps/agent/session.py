"""The session of an agent: all that happened, as lines of JSON that are written before anything goes on.

After a crash, also by kill -9, the lines say which calls have begun and which have ended, and how each file was before
its change. A line that was cut off by the crash is dropped.
"""

import base64
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tiny_llm.apps.agent.act import CallResult
from tiny_llm.apps.agent.files import FileChange, Root
from tiny_llm.apps.agent.nouns import AgentCall, AgentEvent, AgentReply, ReplyEnd
from tiny_llm.config.fields import require, shown

FORMAT = "tiny-llm agent session"
SessionMessage = dict[str, Any]


class AgentSession:
    """Messages, calls, file changes and taint of an agent, folded from its events.

    `root` is the folder whose files the session's tools reach. `path` None keeps all in memory. Only one process can
    have a session's file open. `tainted`: the messages hold text that the user did not write; this is never taken
    back, because the model's own words may repeat it.
    """

    def __init__(self, path: Path | None = None, system: str | None = None, root: str | None = None):
        self.path = path
        self.messages: list[SessionMessage] = []
        self.events: list[AgentEvent] = []
        self.tainted = False
        self.begun: set[str] = set()  # the calls that have begun to run
        self.changes: list[tuple[int, FileChange]] = []  # with the number of the user's message before
        self.number_of_calls = 0
        self._calls: dict[str, AgentCall] = {}  # of the last reply, without those that have a result
        self._users = 0
        self._lock = threading.Lock()
        self._fd = -1
        if path is not None:
            self._fd = open_locked(path)
            try:
                for event in read_events(path, self._fd):
                    self._fold(event)
            except BaseException:
                self.close()
                raise
        if not self.events:
            self.add("session", format=FORMAT, system=system, root=root)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def add(self, kind: str, **data: Any) -> AgentEvent:
        """Write an event, then count it in. Returns when it is on the disk."""
        event = AgentEvent(kind, data)
        with self._lock:
            if self._fd >= 0:
                line = json.dumps({"kind": kind, **data}, ensure_ascii=True) + "\n"
                write_all(self._fd, line.encode())
                os.fsync(self._fd)
            self._fold(event)
        return event

    def reply(self, reply: AgentReply, end: ReplyEnd) -> AgentEvent:
        """Add the model's reply."""
        calls = [{"id": call.id, "name": call.name, "text": call.text} for call in reply.calls]
        figures = end._asdict()
        return self.add("assistant", content=reply.content, reasoning=reply.reasoning, calls=calls, **figures)

    def result(self, call: AgentCall, result: CallResult) -> AgentEvent:
        """Add the result of a call."""
        return self.add("result", call=call.id, name=call.name, **result._asdict())

    def change(self, change: FileChange) -> None:
        """Add a change of a file that is about to be made: the journal of `Root`."""
        self.add("change", path=change.path, before=packed(change.before), after=packed(change.after))

    def unfinished(self) -> list[AgentCall]:
        """Return the calls of the last reply that have no result yet."""
        return list(self._calls.values())

    def undo(self, root: Root) -> list[str]:
        """Take back the file changes since the user's last message that has some, and return their paths.

        Raises ToolError where a file was changed by another program since then; the changes behind it are taken back.
        """
        undone: list[str] = []
        newest = self.changes[-1][0] if self.changes else 0
        while self.changes and self.changes[-1][0] == newest:
            change = self.changes[-1][1]
            root.undo(change)
            self.add("undo", path=change.path)
            undone.append(change.path)
        return undone

    def fork(self, path: Path | None, users: int | None = None) -> "AgentSession":
        """Return a new session that begins with this one's events, or with those of its first `users` messages.

        The requests of both begin with the same tokens, so the engine shares the blocks of that prefix. File changes
        stay with this session: only it can undo them. Raises ValueError for a file that exists.
        """
        require(path is None or not path.exists(), f"{path}: exists already; choose another name for the fork")
        forked = AgentSession(path, self.about("system"), self.about("root"))
        count = 0
        for event in self.events[1:]:
            count += event.kind == "user"
            if users is not None and count > users:
                break
            if event.kind not in ("change", "undo"):
                forked.add(event.kind, **event.data)
        return forked

    def about(self, key: str) -> str | None:
        """Return the session's "system" prompt or the folder that is its "root"."""
        value: str | None = self.events[0].data.get(key)
        return value

    def _fold(self, event: AgentEvent) -> None:
        """Count an event in. This alone changes what the session knows, so a read session is as the written one."""
        self.events.append(event)
        kind, data = event
        if kind == "session" and data.get("system"):
            self.messages.append({"role": "system", "content": data["system"]})
        elif kind == "user":
            self._users += 1
            self.messages.append({"role": "user", "content": data["text"]})
        elif kind == "assistant":
            self._fold_reply(data)
        elif kind == "begin":
            self.begun.add(data["call"])
        elif kind == "result":
            self._calls.pop(data["call"], None)
            self.tainted = self.tainted or data["foreign"]
            self.messages.append({"role": "tool", "tool_call_id": data["call"], "content": data["text"]})
        elif kind == "compact":
            self.messages = [dict(message) for message in data["messages"]]
        elif kind == "change":
            change = FileChange(data["path"], unpacked(data["before"]), unpacked(data["after"]))
            self.changes.append((self._users, change))
        elif kind == "undo":
            self.changes.pop()

    def _fold_reply(self, data: Mapping[str, Any]) -> None:
        message: SessionMessage = {"role": "assistant", "content": data["content"]}
        if data["reasoning"]:
            message["reasoning_content"] = data["reasoning"]
        calls = [call_of(each) for each in data["calls"]]
        if calls:
            message["tool_calls"] = [tool_call(call) for call in calls]
        self.messages.append(message)
        self.number_of_calls += len(calls)
        self._calls = {call.id: call for call in calls}


def call_of(data: Mapping[str, Any]) -> AgentCall:
    """Return the call of a line."""
    try:
        arguments = json.loads(data["text"])
    except (ValueError, RecursionError):
        arguments = None
    return AgentCall(data["id"], data["name"], arguments if isinstance(arguments, dict) else None, data["text"])


def tool_call(call: AgentCall) -> dict[str, Any]:
    """Return a call as it stands in an assistant's message."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or {}}}


def open_locked(path: Path) -> int:
    """Open or make a session's file for this process alone. Raises ValueError where another one has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ValueError(f"{path}: another process works on this session; end it, or fork the session") from None
    return fd


def read_events(path: Path, fd: int) -> Iterable[AgentEvent]:
    """Yield the events of a file. A last line that was cut off is removed; any other fault is a ValueError."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.ftruncate(fd, whole)
    for number, line in enumerate(data[:whole].splitlines(), 1):
        try:
            found = json.loads(line)
            event = AgentEvent(found.pop("kind"), found)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise ValueError(f"{path}: line {number}: expected an event in JSON, found {line[:60]!r}") from None
        right = number > 1 or (event.kind == "session" and found.get("format") == FORMAT)
        require(right, f"{path}: expected the session of an agent, found {shown(event.kind)}; name another file")
        yield event


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def packed(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def unpacked(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
