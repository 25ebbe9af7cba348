"""/v1/models."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tiny_llm.server.models import ServedModel
from tiny_llm.server.routes.common import DOCUMENTED
from tiny_llm.server.state import state_of

router = APIRouter(tags=["models"])
OWNER = "tiny-llm"


@router.get("/v1/models", response_class=JSONResponse, responses=DOCUMENTED)
async def list_models(request: Request) -> Response:
    """List the models, loaded or not."""
    models = state_of(request).models.all
    return JSONResponse({"object": "list", "data": [model_object(model) for model in models]})


@router.get("/v1/models/{name:path}", response_class=JSONResponse, responses=DOCUMENTED)
async def one_model(name: str, request: Request) -> Response:
    """Describe a model."""
    return JSONResponse(model_object(state_of(request).models.find(name)))


def model_object(model: ServedModel) -> dict[str, Any]:
    """Return a model as the API describes it, with vLLM's fields root, parent and max_model_len."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "root": model.spec.path or model.name,
        "parent": None,
        "max_model_len": model.max_context,
        "loaded": model.engine is not None,
    }
