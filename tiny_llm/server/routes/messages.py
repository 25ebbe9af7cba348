"""/v1/messages and /v1/messages/count_tokens: the Anthropic API."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from tiny_llm.config.fields import shown
from tiny_llm.engine.prompt import encode_prompt
from tiny_llm.server.answer import answering
from tiny_llm.server.anthropic_format import MessageFormat
from tiny_llm.server.anthropic_types import CountRequest, MessagesRequest
from tiny_llm.server.ask import Ask, Tenant, engine_call
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.errors import ApiError, bad_request
from tiny_llm.server.formats import Json
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.sse import event, open_stream, while_present, with_start
from tiny_llm.server.state import state_of

router = APIRouter(route_class=StrictRoute, tags=["messages"])
VERSIONS = ("2026-10-21", "2023-06-01")  # alike here: the fields that the newer one drops are honoured in both
KNOWN = " or ".join(VERSIONS)
PING = event({"type": "ping"}, "ping")
Version = Annotated[str | None, Header(description=f"{KNOWN}; may be missing")]


class AnthropicErrorFields(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """The body of each error."""

    type: Literal["error"]
    error: AnthropicErrorFields
    request_id: str | None = None


FULL: dict[int | str, dict[str, Any]] = {529: {"description": "The queue is full"}}
ERRORS = {
    status: {"model": AnthropicErrorBody, "description": told["description"]}
    for status, told in (DOCUMENTED | FULL).items()
}


@router.post("/v1/messages", response_class=JSONResponse, responses=ERRORS)
async def messages(asked: MessagesRequest, request: Request, anthropic_version: Version = None) -> Response:
    """Answer a conversation."""
    check_version(anthropic_version)
    ask = asked.ask()
    if asked.stream:
        settings = state_of(request).settings
        events = message_events(request, asked, ask)
        return await open_stream(request, events, settings, PING, error_event)
    return JSONResponse(await while_present(request, whole_message(request, asked, ask)))


async def whole_message(request: Request, asked: MessagesRequest, ask: Ask) -> Json:
    """Return the whole message."""
    async with answering(request, state_of(request), [ask]) as answers:
        form = MessageFormat(asked.model, answers, asked.stop_sequences or (), bool(asked.return_metrics))
        async for piece in answers.pieces():
            form.events(piece)
        form.end()
        return form.message


async def message_events(request: Request, asked: MessagesRequest, ask: Ask) -> AsyncGenerator[bytes, None]:
    """Yield the events of a streamed message."""
    state = state_of(request)
    async with answering(request, state, [ask]) as answers:
        form = MessageFormat(asked.model, answers, asked.stop_sequences or (), bool(asked.return_metrics))
        async for piece in with_start(answers.pieces(), state.settings.comment_seconds):
            made = form.start() if piece is None else form.events(piece)
            data = b"".join(event(one, one["type"]) for one in made)
            if data:
                yield data
        yield b"".join(event(one, one["type"]) for one in form.end())


def error_event(error: ApiError) -> bytes:
    return event(error.anthropic_body, "error")


@router.post("/v1/messages/count_tokens", response_class=JSONResponse, responses=ERRORS)
async def count_tokens(asked: CountRequest, request: Request, anthropic_version: Version = None) -> Response:
    """Return the number of tokens of a conversation's prompt."""
    check_version(anthropic_version)
    ask = asked.ask()
    async with state_of(request).models.use(asked.model) as engine:
        call = engine_call(ask, engine, Tenant())
        template = call.options.get("template")
        encoded = await asyncio.to_thread(encode_prompt, engine.llm.tokenizer, call.prompt, template)
    return JSONResponse({"input_tokens": len(encoded.tokens)})


def check_version(version: str | None) -> None:
    """Raise ApiError for a version of the API that this server does not know."""
    if version is not None and version not in VERSIONS:
        raise bad_request(f"anthropic-version: expected {KNOWN}, found {shown(version)}.", "anthropic-version")
