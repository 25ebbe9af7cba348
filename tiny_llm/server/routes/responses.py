"""/v1/responses."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter

from tiny_llm.apps.agent.documents import AnswerSearches
from tiny_llm.config.fields import shown
from tiny_llm.server.answer import Answers, answering
from tiny_llm.server.ask import Ask
from tiny_llm.server.body import StrictRoute
from tiny_llm.server.errors import LOG, api_error, bad_request, renamed, unsupported
from tiny_llm.server.formats import Json
from tiny_llm.server.responses_agent import agent_events, searches_of
from tiny_llm.server.responses_format import ResponsesFormat
from tiny_llm.server.responses_items import InputItem, ItemReference, with_parts
from tiny_llm.server.responses_types import ResponsesRequest
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.sse import event, open_stream, while_present, with_start
from tiny_llm.server.state import ServerState, key_of, state_of
from tiny_llm.server.store import ResponseStore, missing

router = APIRouter(route_class=StrictRoute, tags=["responses"])
ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


@router.post("/v1/responses", response_class=JSONResponse, responses=DOCUMENTED)
async def respond(asked: ResponsesRequest, request: Request) -> Response:
    """Answer a conversation, which may go on from a stored response."""
    state = state_of(request)
    given = list(asked.given_input())
    before: list[InputItem] = []
    if asked.previous_response_id is not None or any(isinstance(item, ItemReference) for item in given):
        before, given = await asyncio.to_thread(recalled, asked, request, state, given)
    if asked.store and state.store is None:
        raise unsupported("store", "store: this server stores no responses; leave it out, or set --responses-folder.")
    ask = asked.ask(before + given)
    stored = state.store if asked.store is not False else None
    searches = searches_of(asked, state.hosted)
    work = response_events(request, asked, ask, given, stored, searches)
    if asked.stream:
        return await open_stream(request, streamed(work), state.settings)
    return JSONResponse(await while_present(request, whole(work)))


def recalled(
    asked: ResponsesRequest, request: Request, state: ServerState, given: Sequence[InputItem]
) -> tuple[list[InputItem], list[InputItem]]:
    """Return the stored items before a request's own, and its own with references replaced. Raises ApiError."""
    store, key = state.store, key_of(request)
    if store is None:
        words = "previous_response_id: this server stores no responses; send all items of the conversation."
        raise unsupported("previous_response_id", words)
    before = ITEMS.validate_python(store.items(key, asked.previous_response_id))
    own: list[InputItem] = []
    for item in given:
        own += ITEMS.validate_python([store.item(key, item.id)]) if isinstance(item, ItemReference) else [item]
    return before, own


async def response_events(
    request: Request,
    asked: ResponsesRequest,
    ask: Ask,
    given: Sequence[InputItem],
    store: ResponseStore | None,
    searches: AnswerSearches | None,
) -> AsyncGenerator[list[Json], None]:
    """Yield the events of an answer. The response is stored before the last event, which is the whole response."""
    state = state_of(request)
    seconds = state.settings.request_seconds
    async with answering(request, state, [ask]) as answers:
        form = ResponsesFormat(asked, answers, store is not None, searches)
        if asked.hosted:
            made = agent_events(asked, answers, form, state.hosted, searches, seconds)
        else:
            made = answer_events(answers, form)
        start = form.start()  # the events of the first piece are made before these are sent
        begun = False
        try:
            async with aclosing(made), aclosing(with_start(made, state.settings.comment_seconds)) as steps:
                async for events in steps:
                    yield start if events is None else events
                    begun = True
            if store is not None:
                record = form.record([item.model_dump(exclude_none=True) for item in given])
                try:
                    await asyncio.to_thread(store.put, key_of(request), record)
                except OSError as error:  # the answer is worth more than its copy
                    LOG.warning("a response could not be stored: %s", error)
                    form.response["store"] = False
            yield form.last()
        except Exception as error:
            if not begun or not asked.stream:
                raise
            yield form.failed(renamed(api_error(error), request.url.path))


async def answer_events(answers: Answers, form: ResponsesFormat) -> AsyncGenerator[list[Json], None]:
    """Yield the events of a single answer of the model, and last those of its end."""
    async for piece in answers.pieces():
        yield form.events(piece)
    yield form.finish()


async def streamed(work: AsyncGenerator[list[Json], None]) -> AsyncGenerator[bytes, None]:
    """Yield events as they are sent."""
    try:
        async for events in work:
            data = b"".join(event(one, one["type"]) for one in events)
            if data:
                yield data
    finally:
        await work.aclose()


async def whole(work: AsyncGenerator[list[Json], None]) -> Json:
    """Return the whole response: that of the last event."""
    response: Json = {}
    async for events in work:
        response = events[-1].get("response", response) if events else response
    return response


@router.get("/v1/responses/{name}", response_class=JSONResponse, responses=DOCUMENTED)
async def one_response(name: str, request: Request) -> Response:
    """Return a stored response."""
    store = state_of(request).store
    if store is None:
        raise missing(name)
    record = await asyncio.to_thread(store.get, key_of(request), name)
    return JSONResponse(record["response"])


@router.get("/v1/responses/{name}/input_items", response_class=JSONResponse, responses=DOCUMENTED)
async def input_items(
    name: str,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """Return a page of the items that a stored response's request had, the last one first unless `order` is asc."""
    store = state_of(request).store
    if store is None:
        raise missing(name)
    record = await asyncio.to_thread(store.get, key_of(request), name)
    items = [with_parts(item) for item in record["input"]]
    if order == "desc":
        items.reverse()
    ids = [item["id"] for item in items]
    if after is not None and after not in ids:
        raise bad_request(f"after: expected the id of an input item, found {shown(after)}.", "after")
    begin = 0 if after is None else ids.index(after) + 1
    page = items[begin : begin + limit]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    has_more = begin + limit < len(items)
    return JSONResponse({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": has_more})


@router.delete("/v1/responses/{name}", response_class=JSONResponse, responses=DOCUMENTED)
async def delete_response(name: str, request: Request) -> Response:
    """Delete a stored response."""
    store = state_of(request).store
    if store is None:
        raise missing(name)
    await asyncio.to_thread(store.delete, key_of(request), name)
    return JSONResponse({"id": name, "object": "response", "deleted": True})
