"""Unions of objects that their field `type` tells apart."""

from collections.abc import Callable
from typing import Any, get_args

from pydantic import BaseModel, Discriminator


def one_of(*models: type[BaseModel], default: str | None = None) -> Discriminator:
    """Return what chooses among `models` by the field `type`, which may be missing if `default` names the type.

    Each model is tagged by its class's name: a fault then names the field, as errors leave out names of classes.
    """
    names: dict[str, str] = {}
    for model in models:
        for kind in get_args(model.model_fields["type"].annotation):
            names[kind] = model.__name__
    expected = f"expected an object whose type is {' or '.join(names)}"
    return Discriminator(_tagger(names, default), custom_error_type="unknown_type", custom_error_message=expected)


def _tagger(names: dict[str, str], default: str | None) -> Callable[[Any], str | None]:
    def tag(value: Any) -> str | None:
        if isinstance(value, BaseModel):
            return type(value).__name__
        if not isinstance(value, dict):
            return None
        kind = value.get("type", default)
        return names.get(kind) if isinstance(kind, str) else None

    return tag
