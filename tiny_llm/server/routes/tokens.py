"""/tokenize and /detokenize."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.engine.serving import Engine
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.errors import bad_request
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.state import state_of
from tiny_llm.server.types import DetokenizeRequest, TokenizeRequest

router = APIRouter(route_class=StrictRoute, tags=["tokens"])


@router.post("/tokenize", response_class=JSONResponse, responses=DOCUMENTED)
async def tokenize(asked: TokenizeRequest, request: Request) -> Response:
    """Return the token ids of a text, or of a conversation under the model's chat template."""
    if (asked.prompt is None) == (asked.messages is None):
        raise bad_request("prompt: expected either a prompt or messages; send one of them.", "prompt")
    for name in ("tools", "chat_template_kwargs"):
        if asked.prompt is not None and getattr(asked, name) is not None:
            raise bad_request(f"{name}: expected messages beside it, found a prompt; leave it out.", name)
    models = state_of(request).models
    async with models.use(asked.model or models.first.name) as engine:
        tokens = await asyncio.to_thread(encode, asked, engine)
        found: dict[str, Any] = {"count": len(tokens), "max_model_len": engine.llm.max_context, "tokens": tokens}
        if asked.return_token_strs:
            found["token_strs"] = [engine.llm.tokenizer.token(token) for token in tokens]
    return JSONResponse(found)


def encode(asked: TokenizeRequest, engine: Engine) -> list[int]:
    """Return the token ids that a request asks for."""
    tokenizer = engine.llm.tokenizer
    if asked.prompt is not None:
        return tokenizer.encode(asked.prompt, add_special_tokens=asked.add_special_tokens)
    assert asked.messages is not None
    messages = [message.for_template() for message in asked.messages]
    tools = [tool.for_template() for tool in asked.tools] if asked.tools else None
    settings = asked.chat_template_kwargs or {}
    text = tokenizer.render(messages, tools, asked.add_generation_prompt, **settings)
    return tokenizer.encode(text)


@router.post("/detokenize", response_class=JSONResponse, responses=DOCUMENTED)
async def detokenize(asked: DetokenizeRequest, request: Request) -> Response:
    """Return the text of token ids, special tokens included."""
    models = state_of(request).models
    async with models.use(asked.model or models.first.name) as engine:
        size = engine.llm.config.vocab_size
        for token in asked.tokens:
            if token >= size:
                raise bad_request(f"tokens: expected ids below {size}, found {token}.", "tokens")
        text = engine.llm.tokenizer.decode(asked.tokens, keep_special=True)
    return JSONResponse({"prompt": text})
