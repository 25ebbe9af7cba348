"""What each key may use: requests and tokens in a minute, and requests at once."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tiny_llm.course import NotDone
from tiny_llm.server.errors import over_rate
from tiny_llm.server.keys import Key

MINUTE = 60.0


@dataclass
class Bucket:
    """A token bucket: `limit` units a minute, of which a whole minute's may be used at once. A debt is paid first."""

    limit: int
    now: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = float(self.limit)

    def wait(self, units: float, now: float) -> float:
        """Refill the bucket up to the time `now`. Return the seconds until it has `units`, 0 if it has them.

        It gains `limit` units a minute, evenly, and never holds more than `limit`.
        """
        # YOUR CODE (w4.4.1): refill, and when there will be enough
        raise NotDone("w4.4.1")


class Use:
    """What one key has used."""

    def __init__(self, key: Key, now: float):
        self.key = key
        self.running = 0
        self.requests = Bucket(key.requests_per_minute, now) if key.requests_per_minute else None
        self.tokens = Bucket(key.tokens_per_minute, now) if key.tokens_per_minute else None

    def admit(self, now: float) -> None:
        """Count a request at the time `now`: as one that runs, and as one of the minute's.

        Raises ApiError 429 (`over_rate`) where the key has used up one of its limits, "concurrent" before "requests"
        before "tokens". Each bucket must have one unit. A request that is refused is counted nowhere. For a place among
        the requests that run at once there is no forecast: the client shall ask again in one second.
        """
        # YOUR CODE (w4.4.2): refuse the request, or count it
        raise NotDone("w4.4.2")


class Rates:
    """What all keys have used. It belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._uses: dict[str, Use] = {}

    @contextmanager
    def running(self, key: Key | None) -> Iterator["Meter"]:
        """Within it a request of the key runs. Raises ApiError 429 where the key has used up one of its limits."""
        if key is None:
            yield Meter(None)
            return
        now = self.clock()
        use = self._uses.get(key.name)
        if use is None or use.key != key:  # new, or its limits were changed
            running = 0 if use is None else use.running
            use = self._uses[key.name] = Use(key, now)
            use.running = running
        use.admit(now)
        try:
            yield Meter(use)
        finally:
            self._uses[key.name].running -= 1


@dataclass
class Meter:
    """Counts the tokens of one request against its key's limit. The last request may exceed it: the next one waits."""

    use: Use | None

    def charge(self, tokens: int) -> None:
        if self.use is not None and self.use.tokens is not None:
            self.use.tokens.left -= tokens
