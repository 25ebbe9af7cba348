"""The errors that all routes document."""

from typing import Any

from pydantic import BaseModel


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
