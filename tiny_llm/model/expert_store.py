"""Experts that stay in the model's files: a step reads those that it needs, and the least recently used are dropped.

Of a model with many experts most are not needed for a token, so it runs where it does not fit, as fast as its misses
are few.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from tiny_llm.model.moe import Matrices, Routing, mlp


class StoreCounts(NamedTuple):
    """What a store has done so far. `resident`: bytes of the experts in memory."""

    hits: int
    misses: int
    resident: int

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.hits + self.misses)


class ExpertStore:
    """The experts of `layers`, at most `budget` bytes of them in memory. `read`(layer, expert) returns one's MLP."""

    def __init__(self, read: Callable[[int, int], Matrices], layers: Sequence[int], nbytes: int, budget: int):
        self.read = read
        self.layers = layers
        self.nbytes = nbytes  # of one expert
        self.room = budget // nbytes
        self.kept: OrderedDict[tuple[int, int], Matrices] = OrderedDict()  # the least recently used first
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
        while len(self.kept) >= self.room:
            self.kept.popitem(last=False)
        found = self.kept[place] = self.read(layer, expert)
        return found

    @property
    def counts(self) -> StoreCounts:
        return StoreCounts(self.hits, self.misses, len(self.kept) * self.nbytes)


def counts_of(weights: Mapping[str, Any]) -> StoreCounts | None:
    """Return what a model's store has done so far; None where all experts are in memory, or there are none."""
    for layer in weights["layers"]:
        if "store" in layer.get("experts", {}):
            store: ExpertStore = layer["experts"]["store"]
            return store.counts
    return None


def stored_experts(x: mx.array, routing: Routing, w: Matrices, ops: Any) -> mx.array:
    """Compute `moe.each_expert` with experts of a store, w = {"store": ExpertStore, "layer": int}.

    The choices must be known before an expert can be read: each layer waits for its router.
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
        mx.eval(y)  # so that an expert that the store drops is free at once
    return y
