"""Checks before a route runs: draining, host, origin, key, and the size and time of the body. And security headers."""

import asyncio
import secrets
import urllib.parse
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tiny_llm.config.fields import shown
from tiny_llm.course import NotDone
from tiny_llm.server import errors
from tiny_llm.server.keys import KeyFile
from tiny_llm.server.logs import about
from tiny_llm.server.settings import LOCAL_NAMES, ServerSettings

OPEN_PATHS = frozenset({"/health", "/ready", "/live", "/version", "/docs", "/openapi.json"})  # without a key
ALWAYS = frozenset({"/health", "/ready", "/live", "/metrics", "/version"})  # while draining, too
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
ALLOWED_METHODS = "GET, POST, DELETE, OPTIONS"
SHOWN_HEADERS = "x-request-id, request-id, retry-after"  # that a page of another origin may read
LONGEST_ID = 128  # characters of a client's own request id


class Guard:
    """ASGI middleware in front of all routes. A request that fails a check gets an error and reaches no route.

    Each request gets an id, from the header x-request-id if the client sent one; it is in the response's header and in
    `scope["state"]`, beside the request's `key` (None where the server has none).
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, keys: KeyFile, drain: "Drain"):
        self.app, self.settings, self.keys, self.drain = app, settings, keys, drain
        self._hosts = allowed_hosts(settings)
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(headers.get("x-request-id"))
        origin = headers.get("origin")
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._add_headers(message, scope, origin)
            await send(message)

        try:
            self._check(scope, headers, origin)
        except errors.ApiError as error:
            await errors.respond(error, scope)(scope, receive, send_guarded)
            return
        if origin is not None and scope["method"] == "OPTIONS":
            await send_guarded({"type": "http.response.start", "status": 204, "headers": []})
            await send_guarded({"type": "http.response.body", "body": b""})
            return
        body = Body(receive, self.settings)
        try:
            with self.drain.running():
                await self.app(scope, body.receive, send_guarded)
        except Exception as error:
            if begun:  # behind half of a response the connection is closed
                raise
            with about(state["request_id"]):
                errors.LOG.error("request failed", exc_info=error)
            await errors.respond(errors.internal(), scope)(scope, receive, send_guarded)

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        """Raise the ApiError of the first check that fails."""
        path = scope["path"]
        if self.drain.begun and path not in ALWAYS:
            raise errors.draining()
        check_framing(headers)
        host = headers.get("host", "")
        if self._hosts is not None and host_name(host) not in self._hosts:
            words = f"Host: {shown(host)} is not a name of this server; --allowed-host adds one."
            raise errors.forbidden(words, "unknown_host")
        if origin is not None and not self._knows(origin, host):
            words = f"Origin: pages of {shown(origin)} may not call this server; --allowed-origin allows them."
            raise errors.forbidden(words, "unknown_origin")
        scope["state"]["key"] = None
        is_preflight = origin is not None and scope["method"] == "OPTIONS"
        if self.settings.has_keys and path not in OPEN_PATHS and not is_preflight:
            scope["state"]["key"] = self._key(headers)
        check_length(headers.getlist("content-length"), self.settings.max_body)

    def _knows(self, origin: str, host: str) -> bool:
        """Return whether a page of this origin may call the API: one of the server itself, or one that is allowed."""
        return origin in self._origins or origin in (f"http://{host}", f"https://{host}")

    def _key(self, headers: Headers) -> object:
        """Return the key of a request.

        Raises ApiError 401 where it has none, or an unknown one, and 500 where the file of keys can't be read any more.
        """
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secret:
            secret = headers.get("x-api-key", "")  # the Anthropic API's
        if not secret:
            raise errors.no_key(found=False)
        try:
            key = self.keys.find(secret.strip())
        except (ValueError, OSError) as error:
            errors.LOG.error("the file of keys can't be read: %s", error)
            raise errors.internal() from None
        if key is None:
            raise errors.no_key(found=True)
        return key

    def _add_headers(self, message: Message, scope: Scope, origin: str | None) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in SECURITY.items():
            headers.setdefault(name, value)
        headers["x-request-id"] = headers["request-id"] = scope["state"]["request_id"]  # OpenAI's name, and Anthropic's
        if origin is not None and origin in self._origins:
            headers["access-control-allow-origin"] = origin
            headers["access-control-allow-methods"] = ALLOWED_METHODS
            # browsers' clients send headers of their own, such as x-stainless-lang
            headers["access-control-allow-headers"] = Headers(scope=scope).get("access-control-request-headers", "")
            headers["access-control-expose-headers"] = SHOWN_HEADERS
            headers["vary"] = "origin"


class Drain:
    """Counts running requests, and knows whether the server is ending."""

    def __init__(self) -> None:
        self.begun = False
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self) -> None:
        """Refuse new requests from now on."""
        self.begun = True

    def running(self) -> "Drain":
        return self

    def __enter__(self) -> None:
        self.count += 1
        self._idle.clear()

    def __exit__(self, *_: object) -> None:
        self.count -= 1
        if self.count == 0:
            self._idle.set()

    async def wait(self, seconds: float) -> bool:
        """Wait until no request runs, for at most `seconds`. Returns whether none does."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        return True


class Body:
    """A request's body, of which no more than `max_body` bytes are read, within `body_seconds`."""

    def __init__(self, receive: Receive, settings: ServerSettings):
        self._receive, self._settings = receive, settings
        self._size = 0
        self._whole = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        """Return the next message, a part of the body.

        Raises ApiError 413 (`too_large`) as soon as more than `max_body` bytes have come, and 408 (`too_slow`) where
        the body is not whole within `body_seconds` of the first call. The last part has no `more_body`, or False.
        Behind it the next message comes when the client is gone, and may take any time.
        """
        # YOUR CODE (w4.4.4): a body within its limits of size and time
        raise NotDone("w4.4.4")


def request_id(given: str | None) -> str:
    """Return the client's own id of a request, if it is short and plain, or a new one."""
    if given and len(given) <= LONGEST_ID and given.isascii() and given.isprintable():
        return given
    return f"req_{secrets.token_hex(12)}"


def allowed_hosts(settings: ServerSettings) -> frozenset[str] | None:
    """Return the values of the Host header that are accepted; None for all.

    A page of another site can have its name resolved to 127.0.0.1 and then read what a local server answers (DNS
    rebinding). So a server without keys, or on loopback, answers only to its own names. A key protects the others.
    """
    if not settings.is_local and settings.has_keys and not settings.allowed_hosts:
        return None
    names: Iterable[str] = (*LOCAL_NAMES, settings.host, *settings.allowed_hosts)
    return frozenset(name.lower().strip("[]") for name in names)


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port: [::1]:8000 → ::1."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def check_framing(headers: Headers) -> None:
    """Refuse a request whose length is ambiguous, which can hide a second request behind a proxy."""
    lengths = headers.getlist("content-length")
    if lengths and "transfer-encoding" in headers:
        words = "headers: expected Content-Length or Transfer-Encoding, found both; send one of them."
        raise errors.ApiError(400, words, headers={"Connection": "close"})


def check_length(lengths: list[str], limit: int) -> None:
    """Refuse a body by its announced length, before any of it is read."""
    if lengths and lengths[0].isdecimal() and int(lengths[0][:20]) > limit:
        raise errors.too_large(limit)
