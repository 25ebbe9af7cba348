"""The sessions of agents on this machine: one file each, in one folder."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tiny_llm.apps.agent.session import AgentSession


class SessionFolder:
    """A folder of sessions, named by the times at which they began."""

    def __init__(self, folder: Path):
        self.folder = folder

    def new(self) -> Path:
        """Return the path of a session that begins now."""
        return self.folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}.jsonl"

    def find(self, name: str) -> Path:
        """Return the file of a session, of the newest one for "last". Raises ValueError for an unknown name."""
        known = sorted(self.folder.glob("*.jsonl"))
        if name == "last" and known:
            return known[-1]
        path = self.folder / f"{name}.jsonl"
        if os.sep in name or path not in known:
            remedy = "`tiny-llm agent sessions` lists them"
            raise ValueError(f"expected the name of a session in {self.folder}, found {name!r}; {remedy}")
        return path

    def first_tasks(self) -> Iterator[tuple[str, str]]:
        """Yield each session's name and first task, newest first; without those that another process works on."""
        for path in sorted(self.folder.glob("*.jsonl"), reverse=True):
            with suppress(ValueError):
                session = AgentSession(path)
                tasks = [event.data["text"] for event in session.events if event.kind == "user"]
                session.close()
                yield path.stem, tasks[0] if tasks else ""
