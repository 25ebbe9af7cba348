"""4.4 Safety under load: token buckets, limits of a key, keys that are compared, and bodies within limits."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from random import Random
from typing import Any

from tests.week4.clockwork import StuckError, now, run
from tiny_llm.course.check import Checker, task
from tiny_llm.server.errors import ApiError
from tiny_llm.server.keys import Key, digest_of
from tiny_llm.server.settings import ServerSettings

DIGEST = "0" * 64


def waits(m: Any, limit: int, *asked: tuple[float, float, float]) -> list[float]:
    """For each (time, units that are taken before, units that are asked for): the seconds to wait."""
    bucket = m.Bucket(limit, 0.0)
    found = []
    for at, taken, units in asked:
        bucket.left -= taken
        found.append(round(bucket.wait(units, at), 6))
    return found


@task("w4.4.1")
def test_a_bucket_by_hand(check: Checker) -> None:
    """60 units a minute: one a second. A full bucket has 60."""
    asked = [(0, 0, 1), (0, 60, 1), (0.25, 0, 1), (1, 0, 1), (1, 0, 3), (9, 7, 9)]
    check(lambda m: waits(m, 60, *asked), [0.0, 1.0, 0.75, 0.0, 2.0, 7.0], what="seconds to wait, 60 a minute")
    few = [(0, 2, 1), (15, 0, 1), (15, 0, 0.5), (30, 0, 1), (30, 1, 1)]
    check(lambda m: waits(m, 2, *few), [30.0, 15.0, 0.0, 0.0, 30.0], what="seconds to wait, 2 a minute")


@task("w4.4.1")
def test_a_bucket_holds_no_more_than_its_limit(check: Checker) -> None:
    asked = [(3600, 0, 1), (3600, 10, 1), (3603, 0, 1), (3606, 0, 1)]
    check(lambda m: waits(m, 10, *asked), [0.0, 6.0, 3.0, 0.0], what="seconds after an idle hour, 10 a minute")


@task("w4.4.1")
def test_a_debt_is_paid_first(check: Checker) -> None:
    asked = [(0, 250, 1), (60, 0, 1), (120, 0, 1), (150.6, 0, 1)]
    check(lambda m: waits(m, 100, *asked), [90.6, 30.6, 0.0, 0.0], what="seconds after 250 of 100 tokens")


@task("w4.4.1")
def test_asking_often_gains_nothing(check: Checker) -> None:
    """Fractions add up, and are not counted twice."""
    often = [(number / 16, 0, 1) for number in range(64)]

    def call(m: Any) -> list[float]:
        return waits(m, 30, (0, 30, 1), *often)[-17::8]

    check(call, [0.0, 0.0, 0.0], what="seconds after three seconds of asking 16 times a second, 30 a minute")
    check(lambda m: waits(m, 6, (0, 6, 1), *often)[-1], 6.0625, what="seconds after 3.9375, 6 a minute")


def admitted(m: Any, key: Key, *asked: tuple[float, int]) -> list[str]:
    """For each (time, requests that end before): "ok", or the kind of limit and Retry-After."""
    use = m.Use(key, 0.0)
    found = []
    for at, ended in asked:
        use.running -= ended
        try:
            use.admit(at)
            found.append("ok")
        except ApiError as error:
            found.append(f"{error.status_code} {error.kind} {(error.headers or {})['Retry-After']}")
    left = "" if use.requests is None else f", {use.requests.left:.3g} left"
    return [*found, f"{use.running} running{left}"]


def key(**limits: Any) -> Key:
    return Key("test", DIGEST, **limits)


@task("w4.4.2")
def test_each_limit_alone(check: Checker) -> None:
    check(
        lambda m: admitted(m, key(concurrent=2), (0, 0), (0, 0), (0, 0), (9, 1), (9, 0)),
        ["ok", "ok", "429 concurrent 1", "ok", "429 concurrent 1", "2 running"],
        what="2 at once: three requests, one ends, two more",
    )
    check(
        lambda m: admitted(m, key(requests_per_minute=2), (0, 0), (0, 1), (0, 1), (20.5, 0), (30, 0)),
        ["ok", "ok", "429 requests 30", "429 requests 10", "ok", "1 running, 0 left"],
        what="2 a minute: three requests at once, then after 20.5 and 30 s",
    )
    check(lambda m: admitted(m, key(), *[(0, 0)] * 5), ["ok"] * 5 + ["5 running"], what="no limits: five requests")


@task("w4.4.2")
def test_a_key_in_debt_of_tokens(check: Checker) -> None:
    def call(m: Any) -> list[str]:
        use = m.Use(key(tokens_per_minute=60), 0.0)
        found = []
        for at, used in ((0, 0), (0, 59.5), (0, 10), (5, 0), (10.5, 0)):
            use.tokens.left -= used
            try:
                use.admit(at)
                found.append("ok")
            except ApiError as error:
                found.append(f"{error.kind} {(error.headers or {})['Retry-After']}")
        return [*found, f"{use.running} running"]

    want = ["ok", "tokens 1", "tokens 11", "tokens 6", "ok", "2 running"]
    check(call, want, what="60 tokens a minute: with 60, 0.5 and -9.5 left, 5 and 10.5 s later")


@task("w4.4.2")
def test_the_order_of_the_limits(check: Checker) -> None:
    every = {"concurrent": 1, "requests_per_minute": 1, "tokens_per_minute": 1}

    def call(m: Any) -> list[str]:
        found = admitted(m, key(concurrent=1), (0, 0), (0, 0))[:2]
        use = m.Use(key(**every), 0.0)
        for ended, used in ((0, 0), (0, 5), (1, 0)):
            use.running -= ended
            use.tokens.left -= used
            try:
                use.admit(0.0)
                found.append("ok")
            except ApiError as error:
                found.append(error.kind)
        use.requests.left = 1.0
        try:
            use.admit(0.0)
        except ApiError as error:
            found.append(error.kind)
        return found

    want = ["ok", "429 concurrent 1", "ok", "concurrent", "requests", "tokens"]
    check(call, want, what="with one limit, and with three that are all used up")


@task("w4.4.2")
def test_a_refused_request_uses_up_nothing(check: Checker) -> None:
    """Ten clients that ask again and again wait no longer than one."""
    asked = [(0, 0), *((number, 0) for number in range(1, 11)), (60, 0)]

    def call(m: Any) -> list[str]:
        return admitted(m, key(requests_per_minute=1, concurrent=3), *asked)[-2:]

    check(call, ["ok", "2 running, 0 left"], what="the request after a minute of refused ones; requests that run")

    def tokens(m: Any) -> list[float]:
        use = m.Use(key(requests_per_minute=5, tokens_per_minute=10), 0.0)
        use.tokens.left = -1.0
        for _ in range(3):
            with suppress(ApiError):
                use.admit(0.0)
        return [use.requests.left, use.tokens.left, use.running]

    check(tokens, [5.0, -1.0, 0], what="requests and tokens left, and running, after three refusals for tokens")


async def client(rates: Any, limits: Key, rng: Random, seen: list[tuple[float, int]], running: list[int]) -> None:
    """Ask forty times, each time for a while. A third of the requests fail, another third is cancelled.

    Add to `seen` when each began, and how many ran then.
    """
    for number in range(40):
        try:
            with rates.running(limits):
                running[0] += 1
                seen.append((now(), running[0]))
                try:
                    await asyncio.wait_for(asyncio.sleep(rng.uniform(0.5, 3)), 2 if number % 3 else None)
                    if number % 3 == 1:
                        raise ValueError("the request failed")
                finally:
                    running[0] -= 1
        except (ApiError, ValueError, asyncio.TimeoutError):  # noqa: PERF203
            await asyncio.sleep(rng.uniform(0.1, 1))


def free_places(rates: Any, limits: Key) -> int:
    """Return how many requests may begin at once, up to six."""
    free = 0
    with ExitStack() as stack, suppress(ApiError):
        while free < 6:
            stack.enter_context(rates.running(limits))
            free += 1
    return free


@task("w4.4.2")
def test_after_the_rush_all_places_are_free(check: Checker) -> None:
    """64 clients with one key, which allows 4 requests at once and 30 in a minute. Then a quiet minute."""

    def call(m: Any) -> list[Any]:
        async def main() -> list[Any]:
            rates = m.Rates(now)
            limits = key(concurrent=4, requests_per_minute=30)
            seen: list[tuple[float, int]] = []
            running = [0]
            await asyncio.gather(*(client(rates, limits, Random(i), seen, running) for i in range(64)))
            await asyncio.sleep(60)
            return [max(count for _, count in seen), free_places(rates, limits)]

        return list(run(main()))

    check(call, [4, 4], what="most at once during the rush; free places after it")


class Secret(str):
    """A digest that must not be compared in a way that stops at the first difference."""

    __slots__ = ()

    def _refuse(self, other: object) -> bool:
        raise RuntimeError("this comparison takes longer the more characters are right; compare in constant time")

    __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = startswith = _refuse  # type: ignore
    __hash__ = str.__hash__


class Watched(list[Key]):
    """A list of keys that counts how many were looked at."""

    looked = 0

    def __iter__(self) -> Iterator[Key]:
        for each in list.__iter__(self):
            self.looked += 1
            yield each


SECRETS = ("tl-alpha", "tl-beta", "tl-gamma", "tl-β")


def file_of(m: Any, secrets: Sequence[str] = SECRETS) -> tuple[Any, Watched]:
    keys = Watched(Key(f"key{number}", Secret(digest_of(secret))) for number, secret in enumerate(secrets))
    store = m.KeyFile(None)
    store.all = lambda: keys
    return store, keys


def found(m: Any, secret: str, secrets: Sequence[str] = SECRETS) -> str | None:
    key = file_of(m, secrets)[0].find(secret)
    return None if key is None else key.name


@task("w4.4.3")
def test_a_key_is_found_by_its_secret(check: Checker) -> None:
    for number, secret in enumerate(SECRETS):
        check(lambda m, secret=secret: found(m, secret), f"key{number}", what=f"name of the key {secret}")


@task("w4.4.3")
def test_no_other_text_is_a_key(check: Checker) -> None:
    others = ["", "tl-alph", "tl-alpha ", "TL-ALPHA", "key0", "tl-", digest_of("tl-alpha"), "ß" * 99]
    for secret in others:
        check(
            lambda m, secret=secret: [found(m, "tl-alpha"), found(m, secret)],
            ["key0", None],
            what=f"keys for tl-alpha and {secret[:20]!r}",
        )
    check(lambda m: found(m, "x", ()), None, what="key of an empty file")


@task("w4.4.3")
def test_the_time_tells_nothing(check: Checker) -> None:
    """All keys are looked at, whichever it is. (That texts are compared in constant time is tested everywhere here.)"""

    def call(m: Any) -> list[int]:
        looked = []
        for secret in ("tl-alpha", "tl-gamma", "none"):
            store, keys = file_of(m)
            store.find(secret)
            looked.append(keys.looked)
        return looked

    check(call, [4, 4, 4], what="keys that were looked at for the first, the third and none")


@task("w4.4.3")
def test_a_change_of_the_file_is_seen(check: Checker) -> None:
    """`all` is asked each time."""

    def call(m: Any) -> list[str | None]:
        store, _ = file_of(m, ("old",))
        names = [store.find("old")]
        store.all = lambda: [Key("fresh", digest_of("new"))]
        return [each.name if each else None for each in [*names, store.find("old"), store.find("new")]]

    check(call, ["key0", None, "fresh"], what="old key, then old and new key after a change")


Part = tuple[float, bytes, bool]  # when it comes, what, and whether more follows
LIMITS = ServerSettings(max_body=10, body_seconds=5)


def read(m: Any, parts: Sequence[Part], gone: float = 100.0, least: int = 0) -> list[Any]:
    """Read a body to its end, or `least` messages. → the parts that came, or the status of an error, and the time."""

    async def main() -> list[Any]:
        coming = iter([*parts])

        async def receive() -> dict[str, Any]:
            part = next(coming, None)
            if part is None:
                await asyncio.sleep(max(0.0, gone - now()))
                return {"type": "http.disconnect"}
            await asyncio.sleep(max(0.0, part[0] - now()))
            return {"type": "http.request", "body": part[1], "more_body": part[2]}

        body = m.Body(receive, LIMITS)
        got: list[Any] = []
        more = True
        while more or len(got) < least:
            try:
                message = await body.receive()
            except ApiError as error:
                return [*got, error.status_code, now()]
            more = message.get("more_body", False)
            got.append(message.get("body", message["type"]))
        return [*got, now()]

    try:
        return list(run(main()))
    except StuckError:
        return ["it waits for ever"]


@task("w4.4.4")
def test_bodies_within_the_limits(check: Checker) -> None:
    check(lambda m: read(m, [(1, b"hello", False)]), [b"hello", 1.0], what="a body in one part")
    parts = [(1, b"hello", True), (2, b"", True), (3, b"world", False)]
    check(lambda m: read(m, parts), [b"hello", b"", b"world", 3.0], what="ten bytes, as many as are allowed, in parts")
    check(lambda m: read(m, [(0, b"", False)]), [b"", 0.0], what="an empty body")
    check(lambda m: read(m, [(5 - 1e-3, b"late", False)]), [b"late", 4.999], what="just in time")


@task("w4.4.4")
def test_bodies_that_are_too_large(check: Checker) -> None:
    """Refused at the part that is too much, not at the end."""
    check(lambda m: read(m, [(1, b"x" * 11, False)]), [413, 1.0], what="eleven bytes in one part")
    check(
        lambda m: read(m, [(1, b"x", True), (2, b"y" * 11, False)]), [b"x", 413, 2.0], what="one byte and eleven more"
    )
    parts = [(1, b"x" * 6, True), (2, b"y" * 5, True), (3, b"z", False)]
    check(lambda m: read(m, parts), [b"x" * 6, 413, 2.0], what="six bytes and five more")
    small = [(number / 100, b"x", True) for number in range(200)]
    check(lambda m: read(m, small)[-2:], [413, 0.1], what="a byte at a time without an end")


@task("w4.4.4")
def test_bodies_that_come_too_slowly(check: Checker) -> None:
    """The time is that of the whole body. A client that sends a byte now and then gains nothing."""
    check(lambda m: read(m, [(9, b"x", False)]), [408, 5.0], what="a body after 9 s of 5")
    slow = [(number * 2, b"x", True) for number in range(9)]
    check(lambda m: read(m, slow), [b"x", b"x", b"x", 408, 5.0], what="a byte each two seconds")
    check(lambda m: read(m, [(1, b"x", True)], gone=900), [b"x", 408, 5.0], what="a body that stops")


@task("w4.4.4")
def test_behind_the_body(check: Checker) -> None:
    """The next message comes when the client is gone, which may take as long as the answer."""
    check(
        lambda m: read(m, [(1, b"hello", False)], gone=60, least=2),
        [b"hello", "http.disconnect", 60.0],
        what="a client that is gone a minute later",
    )
    check(
        lambda m: read(m, [(1, b"hello", True)], gone=3),
        [b"hello", "http.disconnect", 3.0],
        what="a client that is gone in the middle",
    )
    check(
        lambda m: read(m, [(1, b"x" * 10, False)], gone=60, least=3),
        [b"x" * 10, "http.disconnect", "http.disconnect", 60.0],
        what="asked again, after the client is gone",
    )
