"""A pool of fixed-size blocks for the K and V of many sequences, and the cache of one ragged step over it.

    pool     blocks of `block_size` slots, head-major: (Hkv, num_blocks, block_size, D) for each layer's K and V
    table    a sequence's blocks in order: its token t lies in block table[t // block_size], slot t % block_size

`engine/blocks` decides which sequence has which block. MLX writes a pool in place only while no other reference to it
is alive. So the tokens of a step must be read before the next step runs. (vLLM's PagedAttention: arXiv:2309.06180)
"""

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_map

from tiny_llm.cache.scattered import ScatteredBatch
from tiny_llm.cache.tables import groups_of, half_filled, padded_tables
from tiny_llm.cache.view import Span, View
from tiny_llm.config import ModelConfig
from tiny_llm.course import NotDone
from tiny_llm.kernels.paged_attention import TWINS, Pages
from tiny_llm.model.memory import available_bytes
from tiny_llm.model.ops import Ops
from tiny_llm.model.step_buffers import StepBuffers

SPARE = 128  # padding blocks allowed per group of decode rows; beyond that a second group is cheaper


class PagedPool:
    """K and V of all layers, made once and written in place.

    `paged` has the operations that read the pool's blocks, and `windows` each layer's window, None for all keys.
    """

    held: tuple[str, ...] = ("keys", "values")  # the attributes that hold buffers

    def __init__(self, config: ModelConfig, ops: Ops, num_blocks: int, block_size: int, dtype: mx.Dtype = mx.float32):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"pool: expected blocks of at least 1 slot, found {num_blocks} blocks of {block_size}")
        self.config = config
        self.ops = ops
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.shape = config.num_key_value_heads, num_blocks, block_size, config.head_dim
        self.scale = config.head_dim**-0.5
        self.windows = tuple(config.window_of(layer) for layer in range(config.num_hidden_layers))
        self.paged = ops.paged or TWINS
        self.slices = self.paged.prefill is None  # no kernel reads the blocks: a row of them may be read as a slice
        self._clear()

    def _drop(self) -> None:
        """Drop all buffers."""
        for name in self.held:
            setattr(self, name, [])

    def _clear(self) -> None:
        """Make all buffers anew, empty; the old ones are dropped first."""
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []
        for _ in range(self.config.num_hidden_layers):
            self.keys.append(mx.zeros(self.shape, self.dtype))
            self.values.append(mx.zeros(self.shape, self.dtype))
        mx.eval(self.state)

    def mend(self) -> bool:
        """Evaluate the buffers after a step that failed; return whether their content is whole.

        Where the failed step's writes can't be evaluated the buffers are made anew, empty. Raises MemoryError where
        there is no room for them: MLX would crash the process.
        """
        try:
            mx.eval(self.state)
            return True
        except Exception:
            need = self.nbytes
            self._drop()
        mx.clear_cache()
        free = available_bytes()
        if free is not None and free < need:
            raise MemoryError(f"no memory for the pool of {need:,} bytes after a step that failed, {free:,} are free")
        self._clear()
        return False

    def ahead(self) -> "PagedPool":
        """Return a shallow copy on which to build a future step; `adopt` makes it current."""
        other = copy(self)
        for name in self.held:
            setattr(other, name, tree_map(copy, getattr(self, name)))
        return other

    def adopt(self, other: "PagedPool") -> None:
        """Take over the buffers of a pool that `ahead` returned."""
        for name in self.held:
            setattr(self, name, getattr(other, name))

    def batch(self, spans: Sequence[Span]) -> "PagedBatch | ScatteredBatch":
        """Return the cache of a step with these tokens in one flat row; scattered spans must come last."""
        tables, starts, lengths = [], [], []
        for span in spans:
            if span.scattered:
                break
            tables.append(span.view.blocks)
            starts.append(span.start)
            lengths.append(span.length)
        plain = PagedBatch(self, tables, starts, lengths) if tables else None
        scattered = spans[len(tables) :]
        if plain is not None and not scattered:
            return plain
        return ScatteredBatch(self, plain, sum(lengths), scattered)

    def write(self, layer: int, blocks: mx.array, slots: mx.array, k: mx.array, v: mx.array) -> None:
        """Put k and v (T, Hkv, D) into the T slots that `blocks` and `slots` name."""
        # YOUR CODE (w3.3.3): each token's K and V into its slot
        raise NotDone("w3.3.3")

    def blank(self, layer: int, blocks: mx.array) -> None:
        """Set the values of reused blocks to 0: a masked slot is multiplied by 0, and 0 · NaN is NaN."""
        self.values[layer][:, blocks] = 0

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks in all layers, for pairs (source, target). All sources are read before a target is written."""
        if not pairs:
            return
        sources = {target: source for source, target in pairs}
        from_blocks = mx.array(list(sources.values()))
        to_blocks = mx.array(list(sources))
        for buffer in self.state:
            copied = self.paged.copy_blocks(buffer, from_blocks)
            mx.eval(copied)  # MLX would copy the whole pool if the write came before this read
            buffer[:, to_blocks] = copied
        mx.eval(self.state)

    def move(self, view: View, sources: Sequence[int], start: int) -> None:
        """Move K and V from these slots of a view, in ascending order, to the slots from `start` on.

        All are read before one is written, because a source may be the target of an earlier one.
        """
        targets = range(start, start + len(sources))
        from_blocks, from_slots = self._places(view, sources)
        to_blocks, to_slots = self._places(view, targets)
        moved = [buffer[:, from_blocks, from_slots] for buffer in self.state]
        mx.eval(moved)
        for buffer, rows in zip(self.state, moved, strict=True):
            buffer[:, to_blocks, to_slots] = rows

    def _places(self, view: View, slots: Sequence[int]) -> tuple[mx.array, mx.array]:
        """Return the block in the pool, and the slot in that block, of each of these slots of a view."""
        table = np.array(view.blocks)
        numbers, rest = np.divmod(np.array(slots), self.block_size)
        return mx.array(table[numbers].astype(np.uint32)), mx.array(rest.astype(np.uint32))

    def buffers(self, layer: int) -> tuple[Any, Any]:
        """Return a layer's keys and values as the operations in `paged` take them."""
        return self.keys[layer], self.values[layer]

    def replace_buffers(self, buffers: list[mx.array]) -> None:
        """Replace the buffers by those that a step has written, in the order of `state`."""
        half = len(buffers) // 2
        self.keys = buffers[:half]
        self.values = buffers[half:]

    def sequence(self, layer: int, table: Sequence[int], length: int) -> tuple[mx.array, mx.array]:
        """Return one sequence's keys and values in their order, (Hkv, length, D) each."""
        return gathered(self.keys[layer], table, length), gathered(self.values[layer], table, length)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self.state)

    @property
    def state(self) -> list[Any]:
        """The buffers of all layers' keys, then those of all layers' values; to evaluate or save."""
        return self.keys + self.values


class Group(NamedTuple):
    """Rows `begin` to `end - 1` of a step, whose queries are attended together; `windowed` has a layer's window."""

    begin: int
    end: int
    pages: Pages
    windowed: Pages


class PagedBatch:
    """The cache of one step: sequence i brings its tokens starts[i] … starts[i] + lengths[i] - 1, all in one flat row.

    tables[i] has blocks for all of them. Sequences with one token are attended together where they come first, at the
    least cost when they are ordered by their starts. Where no kernel reads the blocks and a single sequence's blocks
    lie in a row, its K and V are one slice of the pool, as in a contiguous cache.
    """

    def __init__(
        self,
        pool: PagedPool,
        tables: Sequence[Sequence[int]],
        starts: Sequence[int],
        lengths: Sequence[int],
    ):
        self.pool = pool
        self.starts = starts
        self.lengths = lengths
        self._ends = np.array(starts, np.int32) + np.array(lengths, np.int32)
        self._widths = -(-self._ends // pool.block_size)  # blocks that a sequence reads
        self.tables: list[list[int]] = []
        for table, width in zip(tables, self._widths, strict=True):
            assert len(table) >= width and max(table) < pool.num_blocks, (table, width)
            self.tables.append(list(table[:width]))
        self._positions = positions_of(starts, lengths)
        stale = half_filled(self.tables, starts, self._ends, pool.block_size) if pool.paged.reads_padding else []
        self._stale = mx.array(stale, mx.uint32)
        self._row = self._row_of_blocks()
        self._grouped_rows = False

    @cached_property
    def _padded(self) -> npt.NDArray[np.int32]:
        """The block tables as one array, (R, M)."""
        return padded_tables(self.tables)

    @cached_property
    def _slots(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Each token's block in the pool and its slot in that block, (T,) both."""
        return slots_of(self._padded, self._positions, self.lengths, self.pool.block_size)

    def open_buffers(self, num_tokens: int) -> StepBuffers | None:
        """Open a step whose layers are one operation; None where the sequences' numbers of tokens differ."""
        if len(set(self.lengths)) != 1:
            return None
        pool = self.pool
        blocks, slots = self._slots
        slots = blocks * pool.block_size + slots  # counted through all blocks
        return StepBuffers(
            positions=self.begin(num_tokens),
            slots=mx.array(slots.astype(np.int32)),
            ends=mx.array(self._ends),
            arrays=pool.state,
            replace=pool.replace_buffers,
            tables=mx.array(self._padded),
            block_size=pool.block_size,
        )

    def _group_rows(self) -> None:
        """Group the sequences for `attend`, and make the arrays that all layers share."""
        blocks, slots = self._slots
        self._block_index = mx.array(blocks.astype(np.uint32))  # the type of an index
        self._slot_index = mx.array(slots.astype(np.uint32))
        longer = [i for i, length in enumerate(self.lengths) if length > 1]
        self._decoding = longer[0] if longer else len(self.lengths)
        self._groups = self._grouped()
        self._longer = mx.array(self._padded[self._decoding :])
        self._grouped_rows = True

    def _row_of_blocks(self) -> int | None:
        """Return the first block of a single sequence whose blocks lie in a row; None for any other step."""
        if len(self.tables) != 1 or not self.pool.slices:
            return None
        (table,) = self.tables
        first = table[0]
        return first if table == list(range(first, first + len(table))) else None

    def _grouped(self) -> list[Group]:
        """Group the rows that decode: by their widths where padding is read, else all together."""
        spare = SPARE if self.pool.paged.reads_padding else self._padded.size
        widths: list[int] = self._widths[: self._decoding].tolist()
        window = self.pool.config.sliding_window if self.pool.config.sliding_layers else None
        groups = []
        for begin, end in groups_of(widths, spare):
            tables = self._padded[begin:end, : max(widths[begin:end])]
            ends = self._ends[begin:end]
            pages = Pages.of(tables, ends, self.pool.shape)
            windowed = pages if window is None else Pages.of(tables, ends, self.pool.shape, window)
            groups.append(Group(begin, end, pages, windowed))
        return groups

    def begin(self, num_tokens: int) -> mx.array:
        """Return the positions of all tokens, (T,) int32."""
        assert num_tokens == len(self._positions), (num_tokens, self.lengths)
        return mx.array(self._positions)

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        """Write k and v (T, Hkv, D) of all sequences; return what q (T, Hq, D) sees, (T, Hq, D)."""
        if self._stale.size:
            self.pool.blank(layer, self._stale)
        if self._row is not None:
            return self._attend_row(layer, q, k, v, self._row * self.pool.block_size)
        if not self._grouped_rows:
            self._group_rows()
        self.pool.write(layer, self._block_index, self._slot_index, k, v)
        parts = self._attend_decoding(layer, q)
        row = self._decoding
        if row < len(self.lengths):
            parts += self._attend_longer(layer, q, row)
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _attend_row(self, layer: int, q: mx.array, k: mx.array, v: mx.array, first: int) -> mx.array:
        """`attend` for a single sequence whose slots lie in a row, from the pool's slot `first` on."""
        pool = self.pool
        at = mx.array([first + self.starts[0]])
        end = first + int(self._ends[0])
        seen = []
        heads, _, _, dim = pool.shape
        for buffers, new in ((pool.keys, k), (pool.values, v)):
            buffer = buffers[layer]
            slots = buffer.reshape(heads, -1, dim)  # (Hkv, all slots, D)
            new = new.swapaxes(0, 1)
            slots = mx.slice_update(slots, new, at, [1])
            buffers[layer] = slots.reshape(pool.shape)
            seen.append(slots[:, first:end])
        keys, values = seen
        return pool.ops.attention(q, keys, values, pool.scale, pool.windows[layer])

    def _attend_decoding(self, layer: int, q: mx.array) -> list[mx.array]:
        """Return what the sequences with one token see, for each group (R, H, D)."""
        pool = self.pool
        keys, values = pool.buffers(layer)
        found = []
        for group in self._groups:
            pages = group.pages if pool.windows[layer] is None else group.windowed
            queries = q[group.begin : group.end]
            found.append(pool.paged.decode(queries, keys, values, pages, pool.scale))
        return found

    def _attend_longer(self, layer: int, q: mx.array, row: int) -> list[mx.array]:
        """Return what the sequences with several tokens see; the first of these tokens is number `row` of q."""
        pool = self.pool
        window = pool.windows[layer]
        lengths = self.lengths[self._decoding :]
        ends = self._ends[self._decoding :].tolist()
        if pool.paged.prefill is not None:
            rows = q[row : row + sum(lengths)]
            spans = list(zip(lengths, ends, strict=True))
            keys, values = pool.buffers(layer)
            return [pool.paged.prefill(rows, keys, values, self._longer, spans, pool.scale, window)]
        found = []
        tables = self.tables[self._decoding :]
        for table, length, end in zip(tables, lengths, ends, strict=True):
            keys, values = pool.sequence(layer, table, end)
            mine = q[row : row + length]
            found.append(pool.ops.attention(mine, keys, values, pool.scale, window))
            row += length
        return found


def positions_of(starts: Sequence[int], lengths: Sequence[int]) -> npt.NDArray[np.int32]:
    """Return the positions of a ragged row's tokens, (T,): each sequence continues from its own start."""
    # YOUR CODE (w3.3.1): where each token of the row stands in its sequence
    raise NotDone("w3.3.1")


def slots_of(
    tables: npt.NDArray[np.int32], positions: npt.NDArray[np.int32], lengths: Sequence[int], block_size: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return each token's block in the pool and its slot in that block, both (T,). tables (R, M), positions (T,)."""
    # YOUR CODE (w3.3.2): from a position to a block and a slot
    raise NotDone("w3.3.2")


def gathered(pool: mx.array, table: Sequence[int], length: int) -> mx.array:
    """Return the first `length` slots of a sequence in order, (Hkv, length, D). pool (Hkv, num_blocks, block, D)."""
    # YOUR CODE (w3.3.4): a sequence's slots as one array
    raise NotDone("w3.3.4")
