"""What the routes share: the documented errors, and errors in the middle of a stream."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from tiny_llm.server.errors import ApiError, api_error
from tiny_llm.server.sse import Events, event


class ErrorFields(BaseModel):
    """What went wrong: `param` names the field at fault, `code` is a short name of the error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of each error."""

    error: ErrorFields


DOCUMENTED: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorBody, "description": "The request is faulty"},
    401: {"model": ErrorBody, "description": "The key is missing or unknown"},
    403: {"model": ErrorBody, "description": "Unknown host or origin"},
    404: {"model": ErrorBody, "description": "There is no such model"},
    405: {"model": ErrorBody, "description": "The path has other methods"},
    408: {"model": ErrorBody, "description": "The request came too slowly"},
    413: {"model": ErrorBody, "description": "The request is too large"},
    422: {"model": ErrorBody, "description": "The model can't do this"},
    429: {"model": ErrorBody, "description": "The queue is full, or the key is beyond its rates"},
    503: {"model": ErrorBody, "description": "The model is not ready, or the server ends"},
    504: {"model": ErrorBody, "description": "The answer took too long"},
}


def openai_event(error: ApiError) -> bytes:
    return event(error.body)


async def with_error(
    request: Request, events: Events, form: Callable[[ApiError], bytes] = openai_event
) -> AsyncGenerator[bytes, None]:
    """Yield events; an error behind the first one becomes the last event, because the status is sent already.

    `form` returns the event for an error.
    """
    begun = False
    try:
        async for data in events:
            begun = True
            yield data
    except Exception as error:
        if not begun:
            raise
        yield form(api_error(error))
    finally:
        await events.aclose()
