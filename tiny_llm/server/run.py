"""The server's process: its socket, its ready line, its signals and its drain."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.state import ServerState

HEADER_BYTES = 65_536  # of a request's headers
BACKLOG = 2048  # connections that wait to be accepted
LAST_SECONDS = 2  # for connections to close, once the drain is over


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains at the first SIGTERM or Ctrl-C and ends at the second."""

    def __init__(self, config: uvicorn.Config, state: ServerState, ready: Callable[[], None]):
        super().__init__(config)
        self._state, self._ready = state, ready
        self._signals = 0
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()  # a signal may come before the app has started
        await super().startup(sockets)
        if self.started:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain; at a second signal end the drain; at a third one end at once."""
        self._signals += 1
        if self._signals > 2:
            super().handle_exit(sig, frame)
            return
        self._state.drain.begin()
        seconds = self._state.settings.drain_seconds if self._signals == 1 else 0.0
        self._loop.call_soon_threadsafe(self._begin_end, seconds)

    def _begin_end(self, seconds: float) -> None:
        self._ending = asyncio.ensure_future(self._end(seconds))

    async def _end(self, seconds: float) -> None:
        """Let running requests end for some seconds, while new ones get 503. Those that are left then get an error."""
        if not await self._state.drain.wait(seconds):
            await self._state.models.close()
            await self._state.drain.wait(LAST_SECONDS)
        self.should_exit = True


def bind(settings: ServerSettings) -> socket.socket:
    """Return a socket that is bound, so that a port in use is told before a model loads. Raises ValueError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        listener.close()
        raise ValueError(
            f"host {settings.host}, port {settings.port}: can't listen there: {error}; choose another --port or --host"
        ) from None
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def make_server(app: Starlette, ready: Callable[[], None] = lambda: None) -> DrainingServer:
    """Make the server of an app. `ready` is called once it accepts connections."""
    config = uvicorn.Config(
        app,
        http="h11",  # it refuses ambiguous requests, and bounds the headers
        h11_max_incomplete_event_size=HEADER_BYTES,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    return DrainingServer(config, app.state.server, ready)


def run(app: Starlette, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, and then until running requests have ended."""
    server = make_server(app, ready)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()
