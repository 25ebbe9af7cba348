"""/v1/chat/completions."""

import time

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.server.answer import Answers
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.formats import ChatFormat
from tiny_llm.server.routes.common import DOCUMENTED, respond
from tiny_llm.server.types import ChatRequest

router = APIRouter(route_class=StrictRoute, tags=["chat"])


@router.post("/v1/chat/completions", response_class=JSONResponse, responses=DOCUMENTED)
async def chat(asked: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    return await respond(request, asked, [asked.ask()], new_form)


def new_form(asked: ChatRequest, answers: Answers) -> ChatFormat:
    tokenizer = answers.engine.llm.tokenizer
    return ChatFormat(asked.model, int(time.time()), tokenizer, bool(asked.logprobs))
