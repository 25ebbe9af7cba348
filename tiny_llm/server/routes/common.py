"""What the routes share: the documented errors, and answers of the OpenAI API."""

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from tiny_llm.server.answer import Answers, answering, collect
from tiny_llm.server.ask import Ask
from tiny_llm.server.formats import ChatFormat, CompletionFormat, Json, last_chunk, usage_object
from tiny_llm.server.sse import DONE, event, open_stream, while_present
from tiny_llm.server.state import state_of
from tiny_llm.server.types import SamplingFields

AskedFields = TypeVar("AskedFields", bound=SamplingFields)
MakeForm = Callable[[AskedFields, Answers], ChatFormat | CompletionFormat]


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


async def respond(
    request: Request, asked: AskedFields, asks: Sequence[Ask], make_form: MakeForm[AskedFields]
) -> Response:
    """Answer the Asks of one request, streamed or whole. `make_form` makes the form of the answers."""
    if asked.stream:
        events = answer_events(request, asked, asks, make_form)
        return await open_stream(request, events, state_of(request).settings)
    return JSONResponse(await while_present(request, whole_answers(request, asked, asks, make_form)))


async def whole_answers(
    request: Request, asked: AskedFields, asks: Sequence[Ask], make_form: MakeForm[AskedFields]
) -> Json:
    """Return the response with whole answers."""
    async with answering(request, state_of(request), asks) as answers:
        form = make_form(asked, answers)
        return form.whole(answers, await collect(answers), bool(asked.return_metrics))


async def answer_events(
    request: Request, asked: AskedFields, asks: Sequence[Ask], make_form: MakeForm[AskedFields]
) -> AsyncGenerator[bytes, None]:
    """Yield the events of streamed answers."""
    steady = asked.stream_options is not None and asked.stream_options.continuous_usage_stats
    async with answering(request, state_of(request), asks) as answers:
        form = make_form(asked, answers)
        if asked.wants_usage:
            form.head["usage"] = None
        async for piece in answers.pieces():
            if steady:
                form.head["usage"] = usage_object(answers.usage)
            data = b"".join(map(event, form.chunks(piece)))
            if data:
                yield data
        if asked.wants_usage or asked.return_metrics:
            yield event(last_chunk(form.head, answers, bool(asked.return_metrics)))
    yield DONE
