"""What all routes share."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from tiny_llm.server.guard import Drain
from tiny_llm.server.keys import Key, KeyFile
from tiny_llm.server.models import Models
from tiny_llm.server.observe import Observer
from tiny_llm.server.rates import Rates
from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.store import ResponseStore

if TYPE_CHECKING:
    from tiny_llm.apps.agent.hosted import HostedTools


class Speed:
    """Tokens a second between two calls of `since_last`, from a count of all tokens that only grows."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._then, self._count = clock, clock(), 0

    def since_last(self, count: int) -> float:
        """Return the tokens a second since the last call, or since the start; `count` are all tokens until now."""
        now = self._clock()
        seconds, tokens = now - self._then, count - self._count
        self._then, self._count = now, count
        return tokens / seconds if seconds > 0 else 0.0


@dataclass
class ServerState:
    """What all routes share. `observer` learns of each response; `store` keeps what /v1/responses answers.

    `hosted`: the tools that /v1/responses runs itself.
    """

    models: Models
    settings: ServerSettings
    keys: KeyFile
    hosted: "HostedTools"
    rates: Rates = field(default_factory=Rates)
    drain: Drain = field(default_factory=Drain)
    observer: Observer = field(default_factory=Observer)
    store: ResponseStore | None = None
    speed: Speed = field(default_factory=Speed)


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
