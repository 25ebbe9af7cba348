"""A store of whole caches, one for each sequence: what the engine runs on where nothing is paged.

To the engine it is a pool whose blocks are as long as the context: a sequence holds one block, and that block is a
KVCache of its own (contiguous, rotating or quantized). Copying a block forks its cache. A cache that holds more tokens
than its sequence has computed goes back to them.
"""

from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from typing import Any

import mlx.core as mx

from tiny_llm.cache.contiguous import ContiguousCache
from tiny_llm.cache.scattered import Scattered
from tiny_llm.cache.view import Span, View
from tiny_llm.model.step_buffers import StepBuffers


class WholeCaches:
    """At most `num_blocks` caches that `make` makes, each for a sequence of up to `block_size` tokens.

    `kept`: how many of them the engine may keep for later requests when their sequences have ended.
    """

    def __init__(self, make: Callable[[], ContiguousCache], num_blocks: int, block_size: int, kept: int = 1):
        self.make, self.kept = make, kept
        self.num_blocks, self.block_size = num_blocks, block_size
        self.caches: dict[int, ContiguousCache] = {}
        self._forks = False  # leave the caches as they are, and write into forks of them

    def batch(self, spans: Sequence[Span]) -> "ContiguousCache | TreeInCache | CachesSideBySide":
        """Return the cache of a step: the only sequence's own cache, or several caches side by side."""
        caches: list[ContiguousCache | TreeInCache] = []
        for span in spans:
            cache = self._ready(span)
            caches.append(cache if span.parents is None else TreeInCache(cache, span))
        if len(caches) == 1:
            return caches[0]
        return CachesSideBySide(caches, [span.length for span in spans])

    def can_keep(self, block: int, num_tokens: int) -> bool:
        """Return whether a cache can forget all but its first `num_tokens` tokens."""
        cache = self.caches.get(block)
        return cache is not None and cache.offset - num_tokens <= cache.trimmable

    def put(self, block: int, cache: ContiguousCache) -> None:
        """Store a cache that was filled elsewhere."""
        self.caches[block] = cache

    def drop_unused(self, used: Callable[[int], bool]) -> None:
        """Free the caches of the blocks that are not in use."""
        self.caches = {block: cache for block, cache in self.caches.items() if used(block)}

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Fork caches, source to target. A target that is also a source gives its old content."""
        forks = {target: self.caches[source].fork() for source, target in pairs}
        self.caches.update(forks)

    def move(self, view: View, sources: Sequence[int], start: int) -> None:
        """Move tokens of one sequence to the slots from `start` on."""
        (block,) = view.blocks
        self.caches[block].move(sources, start)

    def ahead(self) -> "WholeCaches":
        """Return a shallow copy on which to build a future step; `adopt` makes it current."""
        other = copy(self)
        other.caches = dict(self.caches)
        other._forks = True
        return other

    def adopt(self, other: "WholeCaches") -> None:
        """Take over the caches of a copy that `ahead` returned."""
        self.caches = other.caches

    def mend(self) -> bool:
        """Drop every cache after a step that failed, because each may be half written. Return False: all is lost."""
        self.caches = {}
        mx.clear_cache()
        return False

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches.values())

    @property
    def state(self) -> list[Any]:
        return [array for cache in self.caches.values() for array in cache.state]

    def _ready(self, span: Span) -> ContiguousCache:
        """Return the sequence's cache, trimmed to the tokens before the span."""
        assert span.view.first == span.start and span.view.held is None, "a whole cache keeps its tokens in order"
        (block,) = span.view.blocks
        if span.start == 0:
            self.caches[block] = self.make()
        elif self._forks:
            self.caches[block] = self.caches[block].fork()
        cache = self.caches[block]
        if cache.offset != span.start:
            cache.trim(cache.offset - span.start)
        return cache


class TreeInCache:
    """The cache of a step whose tokens make a tree: each sees the tokens before the step, and its own ancestors."""

    def __init__(self, cache: ContiguousCache, span: Span):
        self.cache = cache
        self.tree = Scattered.of(span.view, span.start, span.length, span.parents)

    @cached_property
    def _masks(self) -> list[mx.array]:
        """What each token sees in each layer, (T, S)."""
        config = self.cache.config
        windows = [config.window_of(layer) for layer in range(config.num_hidden_layers)]
        masks = {window: self.tree.mask(window) for window in set(windows)}
        return [masks[window] for window in windows]

    def begin(self, num_tokens: int) -> mx.array:
        """Open a step; return the positions of all tokens, (T,) int32."""
        self.cache.begin(num_tokens)
        return mx.array(self.tree.positions)

    def open_buffers(self, num_tokens: int) -> StepBuffers | None:
        """Open a step whose layers are one operation; None where the layers need masks that differ."""
        mask = self._masks[0]
        if any(other is not mask for other in self._masks):
            return None
        buffers = self.cache.open_buffers(num_tokens)
        if buffers is None:
            return None
        return buffers._replace(positions=mx.array(self.tree.positions), mask=mask)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Append k and v (T, Hkv, D); return what q (T, Hq, D) sees, (T, Hq, D)."""
        return self.cache.attend_masked(layer, q, k, v, self._masks[layer])


class CachesSideBySide:
    """The caches of several sequences in one step: sequence i brings lengths[i] tokens of the flat row."""

    def __init__(self, caches: Sequence[ContiguousCache | TreeInCache], lengths: Sequence[int]):
        self.caches, self.lengths = caches, lengths

    def begin(self, num_tokens: int) -> mx.array:
        """Open a step of each cache; return the positions of all tokens, (T,) int32."""
        assert num_tokens == sum(self.lengths), (num_tokens, self.lengths)
        positions = []
        for cache, length in zip(self.caches, self.lengths, strict=True):
            positions.append(cache.begin(length))
        return mx.concatenate(positions)

    def open_buffers(self, num_tokens: int) -> None:
        """Return None: these steps go through `attend`."""

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Let each cache attend to its own sequence's part of q (T, Hq, D), k and v (T, Hkv, D)."""
        parts: list[mx.array] = []
        begin = 0
        for cache, length in zip(self.caches, self.lengths, strict=True):
            end = begin + length
            seen = cache.attend(layer, q[begin:end], k[begin:end], v[begin:end])
            parts.append(seen)
            begin = end
        return mx.concatenate(parts)
