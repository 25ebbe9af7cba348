"""The server's log, for people and for machines.

It has no prompts, answers or keys. `--log-prompts` allows prompts and the messages of errors, which may quote a prompt.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone
from pathlib import Path
from traceback import extract_tb
from typing import Any, Literal, TextIO

from tiny_llm.config.fields import require

NAME = "tiny_llm.server"
request_id: ContextVar[str] = ContextVar("request_id", default="")  # of the request that this task works on

Fields = dict[str, Any]


@contextmanager
def about(request: str) -> Iterator[None]:
    """Give each line that is logged within the block this request id."""
    token = request_id.set(request)
    try:
        yield
    finally:
        request_id.reset(token)


class Logs:
    """Lines about the server and its requests, on a stream.

    `form` is "json", one object a line, "short" for a person, or "auto": short on a terminal and JSON elsewhere.
    `prompts` allows prompts and the messages of errors. The lines of uvicorn are written in the same form.
    """

    def __init__(
        self, stream: TextIO | None = None, form: Literal["auto", "json", "short"] = "auto", prompts: bool = False
    ):
        require(form in ("auto", "json", "short"), f"--log-format: expected auto, json or short, found {form!r}")
        stream = stream or sys.stderr
        if form == "auto":
            form = "short" if stream.isatty() else "json"
        self.prompts = prompts
        self._handler = logging.StreamHandler(stream)
        self._handler.setFormatter(LineFormatter(form == "json", prompts))
        self._logger = logging.getLogger(NAME)
        for name in (NAME, "uvicorn", "uvicorn.error"):
            logger = logging.getLogger(name)
            logger.handlers = [self._handler] if name != "uvicorn.error" else []
            logger.propagate = name == "uvicorn.error"
            logger.setLevel(logging.INFO)
        access = logging.getLogger("uvicorn.access")  # `answered` replaces its lines
        access.handlers, access.propagate = [], False

    def failed(self, message: str, error: BaseException, /, **fields: Any) -> None:
        """Log an error with its type and the lines that raised it, and with its message where prompts are allowed."""
        self._logger.error(message, exc_info=error, extra={"fields": fields})

    def prompt(self, prompt: Any) -> None:
        """Log a request's prompt, where prompts are allowed."""
        if self.prompts:
            self._logger.info("prompt", extra={"fields": {"prompt": prompt}})

    def answered(self, route: str, status: int, seconds: float, **fields: Any) -> None:
        """Log an HTTP response. `route` is the route's pattern, because a path may have texts in it."""
        found = {"route": route, "status": status, "seconds": round(seconds, 4), **fields}
        self._logger.info("answered", extra={"fields": found})


class LineFormatter(logging.Formatter):
    """Writes a record as one line: an object of JSON, or a time, a message and the fields for a person."""

    def __init__(self, as_json: bool, prompts: bool):
        super().__init__()
        self.as_json, self.prompts = as_json, prompts

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        fields: Fields = dict(getattr(record, "fields", {}))
        request = request_id.get()
        if request:
            fields = {"request_id": request, **fields}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= self._of_error(record.exc_info[1])
        at = datetime.fromtimestamp(record.created, timezone.utc)
        if self.as_json:
            line = {"time": at.isoformat(timespec="milliseconds"), "level": record.levelname.lower()}
            return json.dumps({**line, "message": record.getMessage(), **fields}, default=str)
        mark = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        values = [f"{name}={_short(value)}" for name, value in fields.items()]
        return " ".join([at.astimezone().strftime("%H:%M:%S"), mark + _printable(record.getMessage()), *values])

    def _of_error(self, error: BaseException) -> Fields:
        frames = extract_tb(error.__traceback__)
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        fields: Fields = {"error": type(error).__name__, "where": where}
        if self.prompts:
            fields["error_message"] = str(error)
        return fields


def _short(value: Any) -> str:
    """Return a value as a person reads it, in quotation marks where it has spaces."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = _printable(text)
    return json.dumps(text) if " " in text and isinstance(value, str) else text


def _printable(text: str) -> str:
    """Return a text without the characters that move a terminal's cursor or begin a new line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
