"""A fingerprint of a model: equal for the same weights and configuration, wherever the files lie."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from tiny_llm.config import ModelConfig
from tiny_llm.model.moe import expert_of

SAMPLES = 4096  # numbers of each array that are read: training or quantizing changes nearly all numbers


def fingerprint(
    config: ModelConfig, weights: Mapping[str, Any], first_expert: Callable[[int], Any] | None = None
) -> str:
    """Return 64 hex digits computed from the configuration and each weight's name, shape, dtype and some numbers.

    `weights` is the tree that `loader.load_weights` returns, before `Ops.lay_out` changes it. Of a layer's experts the
    first stands for all. Where the tree was loaded without experts, `first_expert`(layer) returns the first one's MLP.
    """
    layers = []
    for index, layer in enumerate(weights["layers"]):
        if "experts" in layer:
            layer = {**layer, "experts": expert_of(layer["experts"], 0)}
        elif first_expert and config.moe and index in config.moe.layers:
            layer = {**layer, "experts": first_expert(index)}
        layers.append(layer)
    digest = hashlib.sha256(repr(config).encode())
    for name, leaf in leaves({**weights, "layers": layers}, ""):
        digest.update(name.encode())
        digest.update(f" {leaf.shape} {leaf.dtype}".encode())
        flat = leaf.reshape(-1)
        step = -(-flat.size // SAMPLES) or 1
        sample = flat[::step].view(mx.uint8)
        digest.update(np.array(sample).tobytes())
    return digest.hexdigest()


def leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the paths and leaves of a tree of dicts and lists, in the order of the paths' parts."""
    if isinstance(tree, Mapping):
        items = sorted(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    else:
        yield path, tree
        return
    for name, child in items:
        yield from leaves(child, f"{path}.{name}")
