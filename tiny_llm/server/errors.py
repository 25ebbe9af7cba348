"""Each error of the HTTP APIs: its status, and its body in the form of the OpenAI API or of the Anthropic API.

The clients turn a status into an exception class, and retry 408, 409, 429 and all from 500 on.
"""

import logging
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path
from starlette.types import Scope

from tiny_llm.config.fields import as_json
from tiny_llm.decode.text import ContextError
from tiny_llm.engine.rank import NoRankerError
from tiny_llm.engine.serving import FullError

if TYPE_CHECKING:  # its import takes a quarter of a second, in which `tiny-llm serve` already loads the model
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError

LOG = logging.getLogger("tiny_llm.server")
INVALID = "invalid_request_error"
NAMED = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+|\[\d+\])*):")  # what an error message names first
CLIENT_GONE = 499  # nginx's status for a client that closed its connection
ANTHROPIC_PATH = "/v1/messages"  # of the Anthropic API, and the begin of its other paths
OVERLOADED = 529  # the Anthropic API's status for a full queue
ANTHROPIC_KINDS = {  # the error types of the Anthropic API by status
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}
FIELDS = {  # what an API calls the fields that errors of the engine name, by the begin of its paths
    "/v1/responses": {"response_format": "text.format", "max_tokens": "max_output_tokens", "messages": "input"},
    "/v1/messages": {"response_format": "output_config.format", "stop": "stop_sequences"},
    "/v1/completions": {"messages": "prompt"},
}
INTERNAL = "The server had an error while processing your request; its log says more."


class GoneError(Exception):
    """The client closed its connection."""


class ApiError(HTTPException):
    """An answer with an error's status and body. `headers` are added to the response."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(status, message, dict(headers or {}))
        self.message, self.kind, self.param, self.code = message, kind, param, code

    @property
    def body(self) -> dict[str, Any]:
        """The body of the OpenAI API."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def anthropic_status(self) -> int:
        """The status of the Anthropic API."""
        return OVERLOADED if self.code == "queue_full" else self.status_code

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The body of the Anthropic API."""
        kind = ANTHROPIC_KINDS.get(self.anthropic_status, INVALID)
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a request that this API never accepts."""
    return ApiError(400, message, INVALID, param, code)


def unsupported(param: str, message: str) -> ApiError:
    """Return the error for a field, or a value of it, that the API has and this server does not."""
    return bad_request(message, param, "unsupported_value")


def unfit_model(message: str, param: str | None = None) -> ApiError:
    """Return the error for a good request that the chosen model can't answer."""
    return ApiError(422, message, INVALID, param, "unsupported_by_model")


def no_key(found: bool) -> ApiError:
    """Return the error for a request without a key, or with an unknown one. The key itself is not repeated."""
    headers = {"WWW-Authenticate": "Bearer"}
    if not found:
        message = "You didn't provide an API key: send it in the header Authorization: Bearer YOUR_KEY."
        return ApiError(401, message, headers=headers)
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key", headers=headers)


def forbidden(message: str, code: str) -> ApiError:
    return ApiError(403, message, code=code)


def no_model(name: str, known: str) -> ApiError:
    """Return the error for an unknown model. `known` lists the models that there are."""
    message = f"The model '{name}' does not exist; this server has {known}."
    return ApiError(404, message, code="model_not_found")


def too_large(limit: int) -> ApiError:
    message = f"body: expected at most {limit} bytes, found more; shorten the request."
    return ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


def too_slow(seconds: float) -> ApiError:
    """Return the error for a client that takes too long to send its request."""
    message = f"body: expected the whole request within {seconds:g} seconds; send it again."
    return ApiError(408, message, "timeout", code="request_timeout", headers={"Connection": "close"})


def over_rate(kind: str, limit: int, seconds: float) -> ApiError:
    """Return the error for a key that has used up its `limit` of "requests", "tokens" or "concurrent" requests."""
    unit = "concurrent requests" if kind == "concurrent" else f"{kind} per minute"
    wait = retry_after(seconds)
    message = f"Rate limit reached: your key may use {limit} {unit}. Please try again in {wait['Retry-After']}s."
    return ApiError(429, message, kind, code="rate_limit_exceeded", headers=wait)


def queue_full(seconds: float) -> ApiError:
    """Return the error for a request for which the queue has no room."""
    wait = retry_after(seconds)
    message = f"The queue is full. Please try again in {wait['Retry-After']}s."
    return ApiError(429, message, "overloaded", code="queue_full", headers=wait)


def draining() -> ApiError:
    """Return the error for a request that arrives while the server ends."""
    message = "The server is shutting down; please try again at another one."
    headers = retry_after(1) | {"Connection": "close"}
    return ApiError(503, message, "server_error", code="draining", headers=headers)


def unavailable(message: str, code: str, seconds: float = 5) -> ApiError:
    """Return the error for a model that is not ready, can't be loaded, or has no room in memory now."""
    return ApiError(503, message, "server_error", code=code, headers=retry_after(seconds))


def out_of_time(seconds: float) -> ApiError:
    message = f"The answer took longer than the {seconds:g} seconds that the server allows; ask for fewer tokens."
    return ApiError(504, message, "timeout", code="answer_timeout")


def internal() -> ApiError:
    return ApiError(500, INTERNAL, "server_error")


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that tells a client when to ask again, in whole seconds from 1 to an hour."""
    return {"Retry-After": str(min(3600, max(1, math.ceil(seconds))))}


def api_error(error: BaseException, forecast: float = 1.0) -> ApiError:
    """Return the API's form of an error of the engine. `forecast`: seconds until the queue has room again."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, FullError):
        return queue_full(forecast)
    if isinstance(error, ContextError):
        return bad_request(str(error), "messages", "context_length_exceeded")
    if isinstance(error, NoRankerError):
        return unfit_model(str(error), "model")
    if isinstance(error, ValueError):
        found = NAMED.match(str(error))
        return bad_request(str(error), found[1] if found else None)
    LOG.error("a request failed", exc_info=error)
    return internal()


def renamed(error: ApiError, path: str) -> ApiError:
    """Return an error that names its field as the API of a path calls it."""
    for begin, names in FIELDS.items():
        if path.startswith(begin) and error.param in names:
            name = names[error.param]
            message = re.sub(f"^{error.param}:", f"{name}:", error.message)
            return ApiError(error.status_code, message, error.kind, name, error.code, error.headers)
    return error


def validation_error(error: "RequestValidationError") -> ApiError:
    """Return the API's form of a fault that pydantic found: of the forms a value may have, that which came furthest."""
    fault = max(error.errors(), key=lambda each: len(each["loc"]))
    place = list(fault["loc"][1:])  # behind "body" or "query"
    param = _path(place)
    kind = fault["type"]
    if kind == "extra_forbidden":
        return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if kind == "missing" and not place:
        return bad_request("body: expected a JSON object, found nothing; send Content-Type: application/json.")
    if kind == "missing":
        return bad_request(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    words = fault["msg"].removeprefix("Value error, ")
    if param is None:
        return bad_request(f"body: {words}, found {as_json(fault.get('input'))}.")
    return bad_request(f"Invalid value for '{param}': {words}, found {as_json(fault.get('input'))}.", param)


def _path(place: list[Any]) -> str | None:
    """Return a place in JSON as the API writes it: messages[0].role. Pydantic also names the branch of a union."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch("[a-z_0-9]+", part) and part not in ("str", "int", "float", "bool"):
            text += f".{part}" if text else part
    return text or None


def respond(error: ApiError, scope: Scope) -> Response:
    """Return the response for an error, in the form of the API to which the request's path belongs."""
    if scope["path"].startswith(ANTHROPIC_PATH):
        body = {**error.anthropic_body, "request_id": scope["state"].get("request_id")}
        return JSONResponse(body, error.anthropic_status, error.headers)
    return JSONResponse(error.body, error.status_code, error.headers)


def allowed_methods(request: Request) -> str:
    """Return the methods that a path has: of all its routes, not of the first one alone."""
    methods: set[str] = set()
    for path, operations in request.app.openapi()["paths"].items():
        if compile_path(path)[0].match(request.url.path):
            methods |= {method.upper() for method in operations}
    return ", ".join(sorted(methods))


def add_handlers(app: "FastAPI") -> None:
    """Let the app answer each error in the API's form."""
    from fastapi.exceptions import RequestValidationError

    async def known(request: Request, error: Exception) -> Response:
        return respond(renamed(api_error(error), request.url.path), request.scope)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(validation_error(error), request.scope)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path}"
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = allowed_methods(request) or headers.get("Allow", "")
        return respond(ApiError(error.status_code, message, headers=headers), request.scope)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)  # nobody reads it

    for kind in (ApiError, ValueError, FullError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(GoneError, gone)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
