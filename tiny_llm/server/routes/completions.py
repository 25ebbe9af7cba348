"""/v1/completions."""

import time
from collections.abc import AsyncGenerator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.server.answer import Answers, answering, collect
from tiny_llm.server.ask import Ask
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.formats import CompletionFormat, Json, last_chunk, usage_object
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.sse import DONE, event, open_stream, while_present
from tiny_llm.server.state import state_of
from tiny_llm.server.types import CompletionRequest

router = APIRouter(route_class=StrictRoute, tags=["completions"])


@router.post("/v1/completions", response_class=JSONResponse, responses=DOCUMENTED)
async def complete(asked: CompletionRequest, request: Request) -> Response:
    """Continue one prompt or several."""
    asks = asked.asks()
    if asked.stream:
        settings = state_of(request).settings
        return await open_stream(request, completion_events(request, asked, asks), settings)
    return JSONResponse(await while_present(request, whole_completion(request, asked, asks)))


async def whole_completion(request: Request, asked: CompletionRequest, asks: Sequence[Ask]) -> Json:
    """Return the response with whole answers."""
    async with answering(request, state_of(request), asks) as answers:
        form = new_form(asked, answers)
        return form.whole(answers, await collect(answers), bool(asked.return_metrics))


async def completion_events(
    request: Request, asked: CompletionRequest, asks: Sequence[Ask]
) -> AsyncGenerator[bytes, None]:
    """Yield the events of streamed answers."""
    steady = asked.stream_options is not None and asked.stream_options.continuous_usage_stats
    async with answering(request, state_of(request), asks) as answers:
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


def new_form(asked: CompletionRequest, answers: Answers) -> CompletionFormat:
    tokenizer = answers.engine.llm.tokenizer
    echoes = []
    for prompt in asked.prompts():
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        each = answers.count // len(answers.asked)
        echoes += [text if asked.echo else ""] * each
    return CompletionFormat(asked.model, int(time.time()), tokenizer, echoes)
