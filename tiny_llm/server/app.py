"""Put the server's parts together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from tiny_llm.apps.agent.hosted import HostedTools
from tiny_llm.server.errors import add_handlers
from tiny_llm.server.guard import Guard
from tiny_llm.server.keys import KeyFile
from tiny_llm.server.models import Models
from tiny_llm.server.observe import ObservedApp, Observer
from tiny_llm.server.routes import chat, completions, embeddings, health, loads, messages, models, responses, tokens
from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.sse import end
from tiny_llm.server.state import ServerState
from tiny_llm.server.store import ResponseStore

TITLE = "tiny-llm"
ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    messages.router,
    responses.router,
    tokens.router,
    models.router,
    loads.router,
    health.router,
)


def make_app(
    served: Models,
    settings: ServerSettings | None = None,
    keys: KeyFile | None = None,
    observer: Observer | None = None,
    hosted: HostedTools | None = None,
) -> FastAPI:
    """Make the app. Its state is `app.state.server`. At its end it closes the engines and the observer.

    `observer`: the one that the models' engines call with their events. `hosted`: the tools that the server runs.
    """
    settings = settings or ServerSettings()
    keys = keys or KeyFile(settings.keys_file, settings.api_key)
    app = FastAPI(title=TITLE, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    folder = settings.responses_folder
    store = ResponseStore(folder, settings.responses_bytes) if folder is not None else None
    hosted = hosted or HostedTools()
    state = ServerState(served, settings, keys, hosted=hosted, observer=observer or Observer(), store=store)
    app.state.server = state
    app.state.settings = settings
    for router in ROUTERS:
        app.include_router(router)
    add_handlers(app)
    app.add_middleware(Guard, settings=settings, keys=keys, drain=state.drain)
    app.add_middleware(ObservedApp, observer=state.observer)
    return app


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Unload idle models while the app runs, and close all of them at its end."""
    served = app.state.server.models
    idle = asyncio.ensure_future(served.unload_idle())
    try:
        yield
    finally:
        await end(idle)
        await served.close()
        await asyncio.to_thread(app.state.server.observer.close)
