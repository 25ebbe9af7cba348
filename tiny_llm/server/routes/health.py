"""/health, /ready, /live, /version and /metrics; /docs, a page that reads the OpenAPI description."""

from importlib import metadata
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from tiny_llm.server.errors import draining, unavailable
from tiny_llm.server.guard import PAGE_POLICY
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.state import state_of

router = APIRouter(tags=["state"])
PAGE = Path(__file__).parents[1] / "docs.html"


@router.get("/health", response_class=JSONResponse, responses=DOCUMENTED)
@router.get("/ready", response_class=JSONResponse, responses=DOCUMENTED)
async def health(request: Request) -> Response:
    """Say whether the server takes requests: 200 or 503.

    It is 503 before the model is loaded, after an engine has failed, and while the server ends.
    """
    state = state_of(request)
    if state.drain.begun:
        raise draining()
    failures = state.models.failures(state.settings.step_seconds)
    if failures:
        raise unavailable(f"{'; '.join(failures)}. Please try again at another server.", "engine_failed")
    if not state.models.is_ready:
        raise unavailable("The model is not loaded yet; please try again.", "loading")
    return JSONResponse({"status": "ok"})


@router.get("/live", response_class=JSONResponse, responses=DOCUMENTED)
async def live(request: Request) -> Response:
    """Say whether the process is worth keeping: 503 once an engine has failed or hangs, and a restart would help.

    While the server drains it answers 200, because a restart then would lose the requests that still run.
    """
    state = state_of(request)
    failures = [] if state.drain.begun else state.models.failures(state.settings.step_seconds)
    if failures:
        raise unavailable(f"{'; '.join(failures)}. Restart the server.", "engine_failed")
    return JSONResponse({"status": "ok"})


@router.get("/version", response_class=JSONResponse, responses=DOCUMENTED)
async def version() -> Response:
    """Return the version of tiny-llm."""
    return JSONResponse({"version": installed_version()})


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return metadata.version("tiny-llm")
    except metadata.PackageNotFoundError:
        return "unknown"


@router.get("/metrics", response_class=PlainTextResponse, responses=DOCUMENTED)
async def metrics(request: Request) -> Response:
    """Return all figures in Prometheus' text format, under vLLM's names."""
    found = state_of(request).observer.metrics
    return Response(found.render(), media_type=found.content_type)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """Return a page that describes the API, without anything from another server."""
    headers = {"content-security-policy": PAGE_POLICY}
    return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=headers)
