"""Put the server's parts together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from tiny_llm.server.errors import add_handlers
from tiny_llm.server.guard import Guard
from tiny_llm.server.keys import KeyFile
from tiny_llm.server.models import Models
from tiny_llm.server.routes import chat, completions, embeddings, health, messages, models, tokens
from tiny_llm.server.settings import ServerSettings
from tiny_llm.server.sse import end
from tiny_llm.server.state import ServerState, Watcher

TITLE = "tiny-llm"
ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    messages.router,
    tokens.router,
    models.router,
    health.router,
)


def make_app(
    served: Models,
    settings: ServerSettings | None = None,
    keys: KeyFile | None = None,
    watchers: Sequence[Watcher] = (),
) -> FastAPI:
    """Make the app. Its state is `app.state.server`. At its end it closes the engines."""
    settings = settings or ServerSettings()
    keys = keys or KeyFile(settings.keys_file, settings.api_key)
    app = FastAPI(title=TITLE, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    state = ServerState(served, settings, keys, watchers=list(watchers))
    app.state.server = state
    app.state.settings = settings
    for router in ROUTERS:
        app.include_router(router)
    add_handlers(app)
    app.add_middleware(Guard, settings=settings, keys=keys, drain=state.drain)
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
