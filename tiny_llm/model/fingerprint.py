"""A name for a model's numbers: equal for the same weights and shape, wherever their files lie."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from tiny_llm.config import ModelConfig

SAMPLES = 4096  # numbers looked at in each array; training or quantizing changes nearly all


def fingerprint(config: ModelConfig, weights: Mapping[str, Any]) -> str:
    """64 hex digits made of the configuration and, from each weight, its name, shape, dtype and some numbers."""
    digest = hashlib.sha256(repr(config).encode())
    for name, array in leaves(weights, ""):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        flat = array.reshape(-1)
        sample = flat[:: -(-flat.size // SAMPLES) or 1]
        digest.update(np.array(sample.view(mx.uint8)).tobytes())
    return digest.hexdigest()


def leaves(tree: Any, path: str) -> Iterator[tuple[str, mx.array]]:
    """The arrays of a tree of dicts and lists with their paths, in the order of the paths' parts."""
    if isinstance(tree, mx.array):
        yield path, tree
        return
    items = sorted(tree.items()) if isinstance(tree, Mapping) else enumerate(tree)
    for name, child in items:
        yield from leaves(child, f"{path}.{name}")
