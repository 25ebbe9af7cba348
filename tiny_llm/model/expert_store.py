"""Keep a model's experts in its files, and the recently used ones in memory under a limit of bytes.

A token needs few experts, so a model can run that does not fit into memory, as fast as reading the missing ones allows.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tiny_llm.model.moe import Matrices, Routing, mlp


class StoreCounts(NamedTuple):
    """How often a store found an expert in memory, how often it read one, and the bytes that it keeps in memory."""

    hits: int
    misses: int
    resident: int

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


class ExpertStore:
    """The experts of a model, at most `budget` bytes of them in memory, which must hold the largest.

    `read`(layer, expert) returns the MLP of an expert. `sizes` has the bytes of an expert for each layer with experts.
    """

    def __init__(self, read: Callable[[int, int], Matrices], sizes: Mapping[int, int], budget: int):
        self.read = read
        self.sizes = sizes
        self.budget = budget
        self.kept: OrderedDict[tuple[int, int], Matrices] = OrderedDict()  # the least recently used first
        self.resident = 0  # bytes of `kept`
        self.hits = 0
        self.misses = 0

    def get(self, layer: int, expert: int) -> Matrices:
        """Return an expert's MLP, from memory or from the file."""
        place = (layer, expert)
        found = self.kept.get(place)
        if found is not None:
            self.hits += 1
            self.kept.move_to_end(place)
            return found
        self.misses += 1
        size = self.sizes[layer]
        while self.kept and self.resident + size > self.budget:
            (dropped_layer, _), _ = self.kept.popitem(last=False)
            self.resident -= self.sizes[dropped_layer]
        found = self.kept[place] = self.read(layer, expert)
        self.resident += size
        return found

    @property
    def counts(self) -> StoreCounts:
        return StoreCounts(self.hits, self.misses, self.resident)


def store_counts(weights: Mapping[str, Any]) -> StoreCounts | None:
    """Return the counts of a model's store; None where all experts are in memory, and for a model without experts."""
    for layer in weights["layers"]:
        if "store" in layer.get("experts", {}):
            store: ExpertStore = layer["experts"]["store"]
            return store.counts
    return None


def stored_experts(x: mx.array, routing: Routing, w: Matrices, ops: Any) -> mx.array:
    """Compute `moe.each_expert` with experts of a store, w = {"store": ExpertStore, "layer": int}.

    Each layer waits for its router, because only then it is known which experts to read.
    """
    store, layer = w["store"], w["layer"]
    experts = np.array(routing.experts)  # (T, K)
    y = mx.zeros_like(x)
    for expert in np.unique(experts).tolist():
        tokens, places = np.nonzero(experts == expert)
        rows = mx.array(tokens.astype(np.int32))
        shares = routing.shares[rows, mx.array(places.astype(np.int32))]
        out = mlp(x[rows], store.get(layer, expert), ops)
        y = y.at[rows].add(out * shares[:, None].astype(out.dtype))
        mx.eval(y)  # a graph that is not evaluated would keep an expert in memory that the store has dropped
    return y
