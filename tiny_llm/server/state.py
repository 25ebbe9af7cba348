"""What all routes share."""

import time
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request

from tiny_llm.server.guard import Drain
from tiny_llm.server.keys import Key, KeyFile
from tiny_llm.server.models import Models
from tiny_llm.server.rates import Rates
from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.store import ResponseStore


class Watcher(Protocol):
    """Learns of finished requests, for metrics, traces and the audit log."""

    def finished(self, request: Request, answers: object) -> None: ...


@dataclass
class ServerState:
    """What all routes share. `watchers` learn of each finished request; `store` keeps responses."""

    models: Models
    settings: ServerSettings
    keys: KeyFile
    rates: Rates = field(default_factory=Rates)
    drain: Drain = field(default_factory=Drain)
    watchers: list[Watcher] = field(default_factory=list)
    store: ResponseStore | None = None
    started: int = field(default_factory=lambda: int(time.time()))


def state_of(request: Request) -> ServerState:
    """Return the state of the app that a request reached."""
    state = request.app.state.server
    assert isinstance(state, ServerState)
    return state


def key_of(request: Request) -> Key | None:
    """Return the key of a request; None where the server has no keys."""
    key = request.scope["state"]["key"]
    assert key is None or isinstance(key, Key)
    return key
