"""The log: one line each, with the request's id, and without any text of a prompt unless that is allowed."""

import asyncio
import io
import json
import logging
from typing import Any

import pytest

from tiny_llm.server import logs
from tiny_llm.server.logs import Logs, about

SECRET = "my private question"
LOG = logging.getLogger(logs.NAME)


@pytest.fixture(autouse=True)
def loggers_as_before():
    names = (logs.NAME, "uvicorn", "uvicorn.error", "uvicorn.access")
    before = [(logging.getLogger(n), logging.getLogger(n).handlers, logging.getLogger(n).propagate) for n in names]
    yield
    for logger, handlers, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail(text: str) -> None:
    raise ValueError(f"prompt: expected something else, found {text!r}")


def everything(made: Logs) -> None:
    """Use each kind of line, with a prompt near all of them."""
    LOG.info("ready", extra={"fields": {"port": 8000}})
    with about("req-1"):
        made.prompt([{"role": "user", "content": SECRET}])
        made.answered("/v1/chat/completions", 200, 0.123456, prompt_tokens=5)
        try:
            fail(SECRET)
        except ValueError as error:
            made.failed("request failed", error, status=500)
    LOG.warning("draining", extra={"fields": {"unfinished": 2}})


def test_json_lines_have_time_level_message_and_request_id() -> None:
    stream = io.StringIO()
    everything(Logs(stream))
    ready, answered, failed, draining = lines_of(stream)
    assert ready.pop("time").endswith("+00:00")
    assert ready == {"level": "info", "message": "ready", "port": 8000}
    assert answered["request_id"] == failed["request_id"] == "req-1"
    assert (answered["route"], answered["status"], answered["seconds"]) == ("/v1/chat/completions", 200, 0.1235)
    assert failed["error"] == "ValueError" and failed["where"][-1].endswith(" fail")
    assert (draining["level"], draining["unfinished"]) == ("warning", 2) and "request_id" not in draining


@pytest.mark.parametrize("form", ["json", "short"])
def test_prompts_are_in_the_log_only_where_allowed(form: Any) -> None:
    for allowed in (False, True):
        stream = io.StringIO()
        everything(Logs(stream, form, prompts=allowed))
        assert stream.getvalue().count(SECRET) == 2 * allowed  # the prompt, and the message that quotes it


def test_a_person_reads_short_lines_on_a_terminal() -> None:
    stream = Terminal()
    everything(Logs(stream))
    lines = stream.getvalue().splitlines()
    assert [line[8:] for line in lines[:2]] == [
        " ready port=8000",
        " answered request_id=req-1 route=/v1/chat/completions status=200 seconds=0.1235 prompt_tokens=5",
    ]
    assert lines[2][8:].startswith(" error: request failed request_id=req-1 status=500 error=ValueError where=")
    assert lines[3][8:] == " warning: draining unfinished=2"


@pytest.mark.parametrize("form", ["json", "short"])
@pytest.mark.parametrize("text", ["two\nlines", "\x1b[2J", "\r", "\u202e", "\x00", "\ud800", "\u2028"])
def test_a_field_cannot_forge_a_line_or_move_the_cursor(form: Any, text: str) -> None:
    stream = Terminal()
    Logs(stream, form)
    LOG.info("model loaded", extra={"fields": {"model": text}})
    line, end = stream.getvalue()[:-1], stream.getvalue()[-1]
    assert end == "\n" and line.isprintable()
    if form == "json":
        assert json.loads(line)["model"] == text


def test_tasks_have_request_ids_of_their_own() -> None:
    stream = io.StringIO()
    Logs(stream)

    async def request(name: str) -> None:
        with about(name):
            await asyncio.sleep(0.01)
            LOG.info("works", extra={"fields": {"mine": name}})

    async def run() -> None:
        await asyncio.gather(*(request(f"r{i}") for i in range(5)))

    asyncio.run(run())
    found = lines_of(stream)
    assert len(found) == 5 and all(line["request_id"] == line["mine"] for line in found)


def test_lines_of_uvicorn_have_the_same_form_once() -> None:
    stream = io.StringIO()
    for _ in range(2):  # a second server in one process does not double the lines
        Logs(stream)
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 42)
    logging.getLogger("uvicorn.access").info("127.0.0.1 GET /v1/models?secret")
    (line,) = lines_of(stream)
    assert line["message"] == "Started server process [42]"


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="--log-format: expected auto, json or short, found 'xml'"):
        Logs(io.StringIO(), "xml")  # type: ignore[arg-type]
