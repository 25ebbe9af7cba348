"""/v1/embeddings and /v1/rerank."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.engine.embed import Vectors
from tiny_llm.engine.serving import Engine
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.errors import bad_request, out_of_time
from tiny_llm.server.formats import Json, new_id
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.sse import while_present
from tiny_llm.server.state import key_of, state_of
from tiny_llm.server.types import EmbeddingsRequest, RerankRequest

router = APIRouter(route_class=StrictRoute, tags=["retrieval"])
Computed = TypeVar("Computed")


@router.post("/v1/embeddings", response_class=JSONResponse, responses=DOCUMENTED)
async def embeddings(asked: EmbeddingsRequest, request: Request) -> Response:
    """Turn texts into vectors of length 1: the final hidden state of each text's last token."""
    return JSONResponse(await while_present(request, embed(asked, request)))


async def embed(asked: EmbeddingsRequest, request: Request) -> Json:
    """Return the response with a vector for each text."""
    texts = asked.texts()
    vectors, usage = await computed(request, asked.model, texts, lambda engine: embedded(engine, texts))
    if asked.dimensions is not None:
        vectors = shortened(vectors, asked.dimensions)
    data = []
    for index, vector in enumerate(vectors):
        data.append({"object": "embedding", "index": index, "embedding": encoded(vector, asked.encoding_format)})
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


async def embedded(engine: Engine, texts: Sequence[str]) -> Vectors:
    """Return the vectors of texts. An error names the field of the API, in place of the engine's argument."""
    try:
        return await engine.aembed(texts, normalize=True)
    except ValueError as error:
        raise ValueError(str(error).replace("texts[", "input[", 1)) from None


async def computed(
    request: Request, model: str, texts: Sequence[str], work: Callable[[Engine], Awaitable[Computed]]
) -> tuple[Computed, Json]:
    """Return what an engine computes, and the usage: the tokens of `texts`, which count against the key's rates.

    Raises ApiError 504 where it takes longer than an answer may.
    """
    state = state_of(request)
    seconds = state.settings.request_seconds
    with state.rates.running(key_of(request)) as meter:
        async with state.models.use(model) as engine:
            try:
                result = await asyncio.wait_for(work(engine), seconds)
            except asyncio.TimeoutError:
                raise out_of_time(seconds) from None
            count = await asyncio.to_thread(count_tokens, engine, texts)
            meter.charge(count)
    state.observer.used(request.scope, model, count)
    return result, {"prompt_tokens": count, "total_tokens": count}


def count_tokens(engine: Engine, texts: Sequence[str]) -> int:
    """Return the number of tokens of all texts."""
    return sum(len(engine.llm.encode(text)) for text in texts)


def shortened(vectors: Vectors, dimensions: int) -> Vectors:
    """Return the first numbers of each vector, divided by their length: models such as Qwen3-Embedding allow that."""
    size = vectors.shape[1]
    if dimensions > size:
        raise bad_request(f"dimensions: expected at most {size}, found {dimensions}.", "dimensions")
    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    shortened: Vectors = cut / np.maximum(lengths, np.finfo(np.float32).tiny)
    return shortened


def encoded(vector: Vectors, form: str) -> list[float] | str:
    """Return a vector as numbers, or as the base64 text of its little-endian float32 bytes."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


@router.post("/v1/rerank", response_class=JSONResponse, responses=DOCUMENTED)
async def rerank(asked: RerankRequest, request: Request) -> Response:
    """Order documents by how well they answer a query, the best first. A score is from 0 to 1."""
    return JSONResponse(await while_present(request, rank(asked, request)))


async def rank(asked: RerankRequest, request: Request) -> Json:
    """Return the response with the best documents."""
    texts = asked.texts()
    counted = [asked.query, *texts]
    ranking = partial(Engine.arank, query=asked.query, documents=texts, instruction=asked.instruction)
    scores, usage = await computed(request, asked.model, counted, ranking)
    order = sorted(range(len(texts)), key=lambda place: (-scores[place], place))
    results = []
    for place in order[: asked.top_n]:
        result: dict[str, Any] = {"index": place, "relevance_score": scores[place]}
        if asked.return_documents:
            result["document"] = {"text": texts[place]}
        results.append(result)
    return {"id": new_id("rerank-"), "model": asked.model, "usage": usage, "results": results}
