"""/server_info and /v1/loads, which routers in front of several servers ask for."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.routes.health import installed_version
from tiny_llm.server.state import ServerState, state_of

router = APIRouter(tags=["state"])


@router.get("/server_info", response_class=JSONResponse, responses=DOCUMENTED)
async def server_info(request: Request) -> Response:
    """Describe the server and its first model under the names that SGLang's routers read."""
    models = state_of(request).models
    first = models.first
    info = {
        "version": installed_version(),
        "model_path": first.spec.path or first.name,
        "served_model_name": first.name,
        "served_models": [model.name for model in models.all],
        "max_model_len": first.max_context,
        "max_total_num_tokens": pool_tokens(state_of(request)),
        "max_running_requests": models.serving.scheduler.max_sequences,
        "dp_size": 1,
        "tp_size": 1,
    }
    return JSONResponse(info)


@router.get("/v1/loads", response_class=JSONResponse, responses=DOCUMENTED)
async def loads(request: Request) -> Response:
    """Return how busy the server is, in SGLang's form: one entry, because one process serves all its models."""
    load = current_load(state_of(request))
    aggregate = {
        "total_running_reqs": load["num_running_reqs"],
        "total_waiting_reqs": load["num_waiting_reqs"],
        "total_reqs": load["num_total_reqs"],
        "avg_token_usage": load["token_usage"],
        "avg_throughput": load["gen_throughput"],
        "avg_utilization": load["utilization"],
    }
    return JSONResponse({"dp_rank_count": 1, "loads": [load], "aggregate": aggregate})


def current_load(state: ServerState) -> dict[str, Any]:
    """Return the figures of all loaded models together."""
    running = waiting = used = queries = hits = generated = 0
    for served in state.models.all:
        figures = state.observer.metrics.of(served.name)
        generated += figures.generated_tokens
        queries += figures.queries
        hits += figures.hits
        if served.engine is None:
            continue
        forecast = served.engine.forecast()
        running += forecast.running
        waiting += forecast.waiting
        used += round(figures.usage * figures.num_blocks) * figures.block_size
    total = pool_tokens(state)
    slots = state.models.serving.scheduler.max_sequences
    return {
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_total_reqs": running + waiting,
        "num_used_tokens": used,
        "max_total_num_tokens": total,
        "token_usage": used / total if total else 0.0,
        "gen_throughput": state.speed.since_last(generated),
        "cache_hit_rate": hits / queries if queries else 0.0,
        "utilization": min(1.0, running / slots),
        "max_running_requests": slots,
    }


def pool_tokens(state: ServerState) -> int:
    """Return how many tokens the pools of all loaded models hold."""
    total = 0
    for served in state.models.all:
        figures = state.observer.metrics.of(served.name)
        if served.engine is not None:
            total += figures.num_blocks * figures.block_size
    return total
