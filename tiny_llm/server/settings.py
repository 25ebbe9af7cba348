"""Every option of `tiny-llm serve` besides the engine's own."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from tiny_llm.config.fields import is_finite, is_integer, require, shown

SECONDS = ("body_seconds", "request_seconds", "write_seconds", "comment_seconds", "idle_unload", "step_seconds")
HOST_NAME = re.compile(r"[\w.-]+")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """How the server listens, what it refuses, and how long it waits. Times are in seconds, sizes in bytes.

    `keys_file`: the file of key hashes that `tiny-llm keys` writes; `api_key`: a single key beside it or instead of it.
    `without_key`: listen on other addresses than loopback though there is no key. `allowed_hosts`: values of the Host
    header that are accepted beside the server's own address. `allowed_origins`: web pages that may call the API.
    `max_body`, `max_depth`: of a request's JSON. `body_seconds`: for a client to send its request. `request_seconds`:
    from a request to the end of its answer. `write_seconds`: after which a client that reads nothing is dropped.
    `comment_seconds`: between the comments that keep a silent event stream open. `drain_seconds`: after SIGTERM, for
    running requests to end. `idle_unload`: after which an unused model is unloaded, None for never. `memory_cap`: of
    all loaded models together, None for no limit but the machine's. `responses_folder`: where /v1/responses stores
    what it answers, None for nowhere; `responses_bytes`: of the responses of each key. `cache_per_tenant`: requests
    with different keys share no cached prefixes. `step_seconds`: a step of an engine that takes longer has failed, and
    /live says so.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys_file: Path | None = None
    api_key: str | None = None
    without_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body: int = 16 * 2**20
    max_depth: int = 100
    body_seconds: float = 30.0
    request_seconds: float = 600.0
    write_seconds: float = 60.0
    comment_seconds: float = 10.0
    drain_seconds: float = 30.0
    idle_unload: float | None = None
    memory_cap: int | None = None
    responses_folder: Path | None = None
    responses_bytes: int = 256 * 2**20
    cache_per_tenant: bool = False
    step_seconds: float = 60.0

    def __post_init__(self) -> None:
        ok = is_integer(self.port) and 0 <= self.port <= 65_535
        require(ok, f"port: expected an integer from 0 to 65535, found {shown(self.port)}")
        for name in ("max_body", "max_depth", "responses_bytes", "memory_cap"):
            value = getattr(self, name)
            ok = (value is None and name == "memory_cap") or (is_integer(value) and value >= 1)
            require(ok, f"{name}: expected an integer of at least 1, found {shown(value)}")
        for name in SECONDS:
            value = getattr(self, name)
            ok = (value is None and name == "idle_unload") or (is_finite(value) and value > 0)
            require(ok, f"{name}: expected seconds above 0, found {shown(value)}")
        ok = is_finite(self.drain_seconds) and self.drain_seconds >= 0
        require(ok, f"drain_seconds: expected seconds from 0 up, found {shown(self.drain_seconds)}")
        require(self.api_key != "", "api_key: expected a key, found an empty text; leave it out")
        self._check_access()

    def _check_access(self) -> None:
        """Raise ValueError for a setting of who may use the server that would have no effect, or open it to all."""
        for name in self.allowed_hosts:
            require(is_host(name), f"allowed_hosts: expected a name or an address without port, found {shown(name)}")
        for page in self.allowed_origins:
            ok = ORIGIN.fullmatch(page) is not None
            require(ok, f"allowed_origins: expected an origin such as https://page.example, found {shown(page)}")
        require(
            self.has_keys or not self.cache_per_tenant,
            "cache_per_tenant: expected keys to tell tenants by, found none; set --keys-file or leave it out",
        )
        require(
            self.is_local or self.has_keys or self.without_key,
            f"host: {self.host} can be reached from other machines, and anyone there could use the models; set a key "
            "(--api-key, or --keys-file with `tiny-llm keys add`), or say --without-key",
        )

    @property
    def has_keys(self) -> bool:
        return self.keys_file is not None or self.api_key is not None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_host(text: str) -> bool:
    """Return whether a text is a name or an address as `host_name` finds it in a Host header: without a port."""
    try:
        ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return HOST_NAME.fullmatch(text) is not None
    return True


def is_loopback(host: str) -> bool:
    """Return whether `host` names this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
