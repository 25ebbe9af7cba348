"""/v1/completions."""

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.server.answer import Answers
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.errors import bad_request
from tiny_llm.server.formats import CompletionFormat
from tiny_llm.server.routes.common import DOCUMENTED, respond
from tiny_llm.server.state import state_of
from tiny_llm.server.types import CompletionRequest

router = APIRouter(route_class=StrictRoute, tags=["completions"])


@router.post("/v1/completions", response_class=JSONResponse, responses=DOCUMENTED)
async def complete(asked: CompletionRequest, request: Request) -> Response:
    """Continue one prompt or several."""
    asks = asked.asks()
    most = state_of(request).models.serving.max_requests
    if len(asks) > most:  # the queue would never have room for all
        raise bad_request(f"prompt: expected at most {most} prompts, found {len(asks)}.", "prompt")
    return await respond(request, asked, asks, new_form)


def new_form(asked: CompletionRequest, answers: Answers) -> CompletionFormat:
    tokenizer = answers.engine.llm.tokenizer
    echoes = []
    for prompt in asked.prompts():
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        each = answers.count // len(answers.asked)
        echoes += [text if asked.echo else ""] * each
    return CompletionFormat(asked.model, int(time.time()), tokenizer, echoes)
