"""Read a request's JSON strictly: UTF-8, numbers that a float can hold, and few levels of lists and objects."""

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from tiny_llm.server.errors import bad_request

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def parse_json(data: bytes, max_depth: int) -> Any:
    """Return the value of a JSON text. Raises ApiError 400 for anything that the JSON standard does not allow."""
    try:
        text = data.decode()
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        words = f"body: expected JSON in UTF-8, found the byte 0x{data[error.start]:02x} at {error.start}."
        raise bad_request(words) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as error:
        raise bad_request(f"body: expected JSON, found something else: {error}.") from None
    if deeper_than(max_depth, value):
        raise _too_deep(max_depth)
    return value


def deeper_than(limit: int, value: Any) -> bool:
    """Return whether a value has more than `limit` levels of lists and objects."""
    level = [value]
    for _ in range(limit + 1):
        below: list[Any] = []
        for each in level:
            if type(each) is dict:
                below += each.values()
            elif type(each) is list:
                below += each
        if not below:
            return False
        level = below
    return True


def _too_deep(limit: int) -> Exception:
    return bad_request(f"body: expected at most {limit} levels of lists and objects, found more.")


def _refuse(constant: str) -> None:
    raise ValueError(f"JSON has no number {constant}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text:.40} is too large")
    return number


class StrictRequest(Request):
    """A request whose body is read by `parse_json`."""

    async def json(self) -> Any:
        return parse_json(await self.body(), self.app.state.settings.max_depth)


class StrictRoute(APIRoute):
    """A route that reads its body strictly."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict
