"""A pool of fixed-size blocks for the K and V of many sequences, and the cache of one ragged step over it.

    pool     blocks of `block_size` slots, head-major: (Hkv, num_blocks, block_size, D) for each layer's K and V
    table    a sequence's blocks in order: its token t lies in block table[t // block_size], slot t % block_size

Who owns which block is decided elsewhere (`engine/blocks`). MLX writes a pool in place only while nobody else holds
it: whoever runs the steps lets the last one's readers go (reads its tokens) before the next step runs. (vLLM's
PagedAttention: arXiv:2309.06180)
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

from tiny_llm.cache.memory import bytes_per_slot
from tiny_llm.cache.quantized import group_size_for
from tiny_llm.cache.scattered import Scattered
from tiny_llm.cache.view import Span
from tiny_llm.config import ModelConfig
from tiny_llm.kernels.copy_blocks import copied_blocks
from tiny_llm.kernels.launch import choose
from tiny_llm.kernels.paged import Pages, paged_decode_plain
from tiny_llm.kernels.paged_attention import paged_decode, paged_prefill
from tiny_llm.model.ops import Ops

SPARE = 128  # padding blocks allowed per group of decode rows; beyond that a second group is cheaper


def block_nbytes(config: ModelConfig, block_size: int, dtype: mx.Dtype, bits: int | None = None) -> int:
    """Bytes of one block: K and V of all layers, packed to `bits` where that is given."""
    group_size = group_size_for(config.head_dim) if bits else 64
    return block_size * bytes_per_slot(config, dtype.size, bits, group_size)


def num_blocks_for(config: ModelConfig, budget: int, block_size: int, dtype: mx.Dtype, bits: int | None = None) -> int:
    """How many blocks fit into `budget` bytes. Raises ValueError where not even one does."""
    each = block_nbytes(config, block_size, dtype, bits)
    if budget < each:
        raise ValueError(
            f"KV budget: expected at least {each} bytes (one block of {block_size} tokens), found {budget}"
        )
    return budget // each


class PagedPool:
    """K and V of all layers, made once and written in place."""

    held: tuple[str, ...] = ("keys", "values")  # the attributes that hold buffers

    def __init__(self, config: ModelConfig, ops: Ops, num_blocks: int, block_size: int, dtype: mx.Dtype = mx.float32):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"pool: expected blocks of at least 1 slot, found {num_blocks} blocks of {block_size}")
        self.config, self.ops, self.num_blocks, self.block_size = config, ops, num_blocks, block_size
        self.dtype = dtype
        self.shape = config.num_key_value_heads, num_blocks, block_size, config.head_dim
        self.on = choose(ops.kernels)  # the back end of the kernels
        self.clear()

    def drop(self) -> None:
        """Give up all buffers."""
        for name in self.held:
            setattr(self, name, [])

    def clear(self) -> None:
        """Forget everything; the old buffers go before the new ones come."""
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []
        for buffers in (self.keys, self.values):
            buffers += [mx.zeros(self.shape, self.dtype) for _ in range(self.config.num_hidden_layers)]
        mx.eval(self.state)

    def ahead(self) -> "PagedPool":
        """A shallow copy on which to build a future step; `adopt` makes it current."""
        other = copy(self)
        for name in self.held:
            setattr(other, name, tree_map(copy, getattr(self, name)))
        return other

    def adopt(self, other: "PagedPool") -> None:
        """Take over what was built on `ahead`."""
        for name in self.held:
            setattr(self, name, getattr(other, name))

    def write(self, layer: int, blocks: mx.array, slots: mx.array, k: mx.array, v: mx.array) -> None:
        """Put k and v (T, Hkv, D) into the T slots that `blocks` and `slots` name."""
        # TASK w3.3.3: each token's K and V into its slot
        self.keys[layer][:, blocks, slots] = k.swapaxes(0, 1)
        self.values[layer][:, blocks, slots] = v.swapaxes(0, 1)
        # END TASK

    def blank(self, layer: int, blocks: mx.array) -> None:
        """Clear the values of blocks that have a new owner: what is masked is multiplied by 0, and 0 · NaN is NaN."""
        self.values[layer][:, blocks] = 0

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, source to target, in all layers. A target that is also a source gives its old content."""
        if not pairs:
            return
        targets, sources = (
            mx.array(list(side)) for side in ({b: 0 for _, b in pairs}, {b: a for a, b in pairs}.values())
        )
        for buffer in self.state:
            copied = copied_blocks(buffer, sources, on=self.on)
            mx.eval(copied)  # a reader under way would make the write a copy of the whole pool
            buffer[:, targets] = copied
        mx.eval(self.state)

    def decode(self, layer: int, q: mx.array, pages: Pages, window: int | None) -> mx.array:
        """What one query of each sequence sees, (R, H, D)."""
        keys, values, scale = self.keys[layer], self.values[layer], self.config.head_dim**-0.5
        if self.on == "plain":
            return paged_decode_plain(q, keys, values, pages, scale)
        return paged_decode(q, keys, values, pages.tables, pages.ends, scale, window or 0, on=self.on)

    def sequence(self, layer: int, table: Sequence[int], length: int) -> tuple[mx.array, mx.array]:
        """One sequence's keys and values in their order, (Hkv, length, D) each."""
        return gathered(self.keys[layer], table, length), gathered(self.values[layer], table, length)

    def batch(self, spans: Sequence[Span]) -> "PagedBatch":
        plain = [span for span in spans if not span.scattered]
        others = spans[len(plain) :]
        return PagedBatch(
            self,
            [span.view.blocks for span in plain],
            [span.start for span in plain],
            [span.length for span in plain],
            [Scattered.of(*span) for span in others],
        )

    def drop_unused(self, used: Callable[[int], bool]) -> None:
        """Nothing: a pool keeps its buffers."""

    def mend(self) -> bool:
        try:
            mx.eval(self.state)
            return True
        except Exception:
            self.drop()
            mx.clear_cache()
            self.clear()
            return False

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.state)

    @property
    def state(self) -> list[Any]:
        return self.keys + self.values


class PagedBatch:
    """The cache of one step: sequence i brings its tokens starts[i] … starts[i] + lengths[i] - 1, all in one flat row.

    tables[i] has blocks for all of them. Sequences that bring one token are done together where they stand in front,
    most cheaply when they are ordered by their starts. Behind all these stand the tokens of `scattered` sequences.
    """

    def __init__(
        self,
        pool: PagedPool,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
        scattered: Sequence[Scattered] = (),
    ):
        self.pool, self.starts, self.lengths, self.scattered = pool, starts, lengths, scattered
        self._ends = np.array(starts, np.int32) + np.array(lengths, np.int32)
        self._widths = -(-self._ends // pool.block_size)  # blocks that a sequence reads
        for table, width in zip(tables, self._widths, strict=True):
            assert len(table) >= width and max(table) < pool.num_blocks, (table, width)
        self.tables = [list(table[:width]) for table, width in zip(tables, self._widths, strict=True)]
        padded = padded_tables(self.tables)
        self._place(padded)
        # kernels stop at a sequence's end, so stale slots need no clearing
        self._fresh = mx.array(self._half_filled() if pool.on == "plain" else [], mx.uint32)
        self._decoding = next((i for i, length in enumerate(lengths) if length > 1), len(lengths))
        spare = SPARE if pool.on == "plain" else padded.size  # a kernel fills nothing up: one group
        self._groups = [
            (a, b, self._pages(padded[a:b], a, b)) for a, b in spans(self._widths[: self._decoding].tolist(), spare)
        ]
        self._longer = mx.array(padded[self._decoding :])

    def _place(self, padded: npt.NDArray[np.int32]) -> None:
        """Find each token's position, block and slot."""
        positions, places = list[npt.NDArray[np.int32]](), list[tuple[npt.NDArray[np.int32], ...]]()
        if len(self.lengths):
            positions.append(positions_of(self.starts, self.lengths))
            places.append(slots_of(padded, positions[0], self.lengths, self.pool.block_size))
        for one in self.scattered:
            positions.append(one.positions)
            places.append(slots_of(np.array([one.blocks]), one.slots, [len(one.slots)], self.pool.block_size))
        blocks, slots = zip(*places, strict=True)
        self._positions = joined(positions)
        self._blocks = mx.array(joined(blocks).astype(np.uint32))  # the type of an index
        self._slots = mx.array(joined(slots).astype(np.uint32))

    def begin(self, num_tokens: int) -> mx.array:
        assert num_tokens == len(self._positions), (num_tokens, self.lengths)
        return mx.array(self._positions)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        if self._fresh.size:
            self.pool.blank(layer, self._fresh)
        self.pool.write(layer, self._blocks, self._slots, k, v)
        parts = list(self._attended(layer, q))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _attended(self, layer: int, q: mx.array) -> Iterator[mx.array]:
        pool, config, at = self.pool, self.pool.config, self._decoding
        scale, window = config.head_dim**-0.5, config.window_of(layer)
        for begin, end, pages in self._groups:
            yield pool.decode(layer, q[begin:end], pages[window is not None], window)
        if pool.on != "plain" and at < len(self.lengths):
            keys, values = pool.keys[layer], pool.values[layer]
            both = list(zip(self.lengths[at:], self._ends[at:].tolist(), strict=True))
            longer = sum(self.lengths[at:])
            yield paged_prefill(q[at : at + longer], keys, values, self._longer, both, scale, window or 0, on=pool.on)
            at += longer
        else:
            for i in range(at, len(self.lengths)):
                mine = pool.sequence(layer, self.tables[i], int(self._ends[i]))
                yield pool.ops.attention(q[at : at + self.lengths[i]], *mine, scale, window)
                at += self.lengths[i]
        for one in self.scattered:
            keys, values = pool.sequence(layer, one.blocks, len(one.held))
            if one.unused is not None:
                values[:, one.unused] = 0  # what is masked is multiplied by 0, and 0 · NaN is NaN
            rows = q[at : at + len(one.slots)]
            yield pool.ops.masked_attention(rows, keys, values, scale, one.mask(window))
            at += len(one.slots)

    def _half_filled(self) -> list[int]:
        """The blocks that this step begins and does not fill."""
        size, steps = self.pool.block_size, zip(self.tables, self.starts, self._ends.tolist(), strict=True)
        return [table[-1] for table, start, end in steps if start <= end - end % size < end]

    def _pages(self, padded: npt.NDArray[np.int32], begin: int, end: int) -> tuple[Pages, ...]:
        """The group's pages, and once more for layers with a window where there are any."""
        tables, ends = padded[:, : self._widths[begin:end].max()], self._ends[begin:end]
        windows = (None, self.pool.config.sliding_window) if self.pool.config.sliding_layers else (None,)
        return tuple(Pages.of(tables, ends, self.pool.shape, window) for window in windows)


def joined(parts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """The rows one after the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def positions_of(starts: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    """The positions of a ragged row's tokens, (T,): each sequence goes on from its own start."""
    # TASK w3.3.1: where each token of the row stands in its sequence
    ranges = [np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return np.concatenate(ranges).astype(np.int32)
    # END TASK


def slots_of(
    tables: npt.NDArray[np.int32], positions: npt.NDArray[np.int32], lengths: Sequence[int], block_size: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Each token's block in the pool and its slot in that block, (T,) and (T,). tables (R, M), positions (T,)."""
    # TASK w3.3.2: from a position to a block and a slot
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return tables[rows, positions // block_size], positions % block_size
    # END TASK


def gathered(pool: mx.array, table: Sequence[int], length: int) -> mx.array:
    """The first `length` slots of a sequence in their order, (Hkv, length, D). pool (Hkv, num_blocks, block, D)."""
    # TASK w3.3.4: a sequence's slots as one array
    heads, _, _, dim = pool.shape
    return pool[:, mx.array(list(table))].reshape(heads, -1, dim)[:, :length]
    # END TASK


def padded_tables(tables: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    """Block tables as one array (R, M), short ones filled up with their own last block: nobody reads another's."""
    width = max(map(len, tables), default=0)
    rows = [[*table, *[table[-1]] * (width - len(table))] for table in tables]
    return np.array(rows, np.int32).reshape(len(tables), width)


def spans(widths: Sequence[int], spare: int) -> list[tuple[int, int]]:
    """Cut rows into runs in which filling up every row to the widest costs at most `spare` in all."""
    found, begin, top, total = [], 0, 0, 0
    for i, width in enumerate(widths):
        top, total = max(top, width), total + width
        if top * (i + 1 - begin) - total > spare:
            found.append((begin, i))
            begin, top, total = i, width, width
    return [*found, (begin, len(widths))] if begin < len(widths) else found
