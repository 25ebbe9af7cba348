"""/v1/chat/completions."""

import time
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.server.answer import Answers, answering, collect
from tiny_llm.server.ask import Ask
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.formats import ChatFormat, Json, last_chunk, usage_object
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.sse import DONE, event, open_stream, while_present
from tiny_llm.server.state import state_of
from tiny_llm.server.types import ChatRequest

router = APIRouter(route_class=StrictRoute, tags=["chat"])


@router.post("/v1/chat/completions", response_class=JSONResponse, responses=DOCUMENTED)
async def chat(asked: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    ask = asked.ask()
    if asked.stream:
        settings = state_of(request).settings
        return await open_stream(request, chat_events(request, asked, ask), settings)
    return JSONResponse(await while_present(request, whole_chat(request, asked, ask)))


async def whole_chat(request: Request, asked: ChatRequest, ask: Ask) -> Json:
    """Return the response with whole answers."""
    async with answering(request, state_of(request), [ask]) as answers:
        form = new_form(asked, answers)
        return form.whole(answers, await collect(answers), bool(asked.return_metrics))


async def chat_events(request: Request, asked: ChatRequest, ask: Ask) -> AsyncGenerator[bytes, None]:
    """Yield the events of streamed answers."""
    steady = asked.stream_options is not None and asked.stream_options.continuous_usage_stats
    async with answering(request, state_of(request), [ask]) as answers:
        form = new_form(asked, answers)
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


def new_form(asked: ChatRequest, answers: Answers) -> ChatFormat:
    tokenizer = answers.engine.llm.tokenizer
    return ChatFormat(asked.model, int(time.time()), tokenizer, bool(asked.logprobs))
