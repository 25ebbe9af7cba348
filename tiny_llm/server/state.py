"""What all routes share."""

from dataclasses import dataclass, field

from fastapi import Request

from tiny_llm.server.guard import Drain
from tiny_llm.server.keys import Key, KeyFile
from tiny_llm.server.models import Models
from tiny_llm.server.observe import Observer
from tiny_llm.server.rates import Rates
from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.store import ResponseStore


@dataclass
class ServerState:
    """What all routes share. `observer` learns of each response; `store` keeps what /v1/responses answers."""

    models: Models
    settings: ServerSettings
    keys: KeyFile
    rates: Rates = field(default_factory=Rates)
    drain: Drain = field(default_factory=Drain)
    observer: Observer = field(default_factory=Observer)
    store: ResponseStore | None = None


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
