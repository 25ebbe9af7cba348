"""Every kernel with inputs to try it on: what `tiny-llm kernels` and the tests go through."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import numpy as np

from tiny_llm.kernels.copy_blocks import COPY_BLOCKS, copied_blocks
from tiny_llm.kernels.decode_attention import (
    DECODE_ATTENTION,
    MERGE_ATTENTION,
    decode_attention_parts,
    merge_attention,
)
from tiny_llm.kernels.elementwise import AXPBY, SWIGLU, axpby, swiglu
from tiny_llm.kernels.experts import EXPERT_ROWS, SortedChoices, expert_rows
from tiny_llm.kernels.flash_attention import FLASH_ATTENTION, flash_attention
from tiny_llm.kernels.launch import Kernel
from tiny_llm.kernels.matmul import QUANTIZED_TILES, SPLIT_SUM, quantized_tiles, split_sum
from tiny_llm.kernels.norm import RESIDUAL_RMS_NORM, RMS_NORM, residual_rms_norm, rms_norm
from tiny_llm.kernels.packed_attention import PACKED_ATTENTION, packed_parts
from tiny_llm.kernels.paged_attention import PAGED_DECODE, PAGED_PREFILL, paged_decode_parts, paged_prefill
from tiny_llm.kernels.quantized import QUANTIZED_MATVEC, QUANTIZED_ROWS, quantized_matvec, quantized_rows
from tiny_llm.kernels.rope import ROPE, rope
from tiny_llm.kernels.softmax import SOFTMAX, softmax

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class KernelEntry:
    """`examples` are arguments of awkward sizes, `typical` those of a small Qwen's prompt; both by dtype, before `on`.

    The first example is large enough for each barrier to matter. `operations` counts arithmetic per element of the
    first argument, each function as one. `once` names the inputs that are read once; None: all are.
    """

    kernel: Kernel
    launch: Callable[..., mx.array | tuple[mx.array, ...]]
    examples: Callable[[mx.Dtype], list[Arguments]]
    typical: Callable[[mx.Dtype], Arguments]
    operations: float
    once: str | None = None

    def run(self, arguments: Arguments, on: Any) -> list[mx.array]:
        outputs = self.launch(*arguments, on=on)
        return [outputs] if isinstance(outputs, mx.array) else list(outputs)


def normal(dtype: mx.Dtype, *shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def norm_arguments(dtype: mx.Dtype, rows: int, width: int) -> Arguments:
    return normal(dtype, rows, width), normal(dtype, width, seed=1), 1e-6


def residual_arguments(dtype: mx.Dtype, rows: int, width: int) -> Arguments:
    return normal(dtype, rows, width), normal(dtype, rows, width, seed=2), normal(dtype, width, seed=1), 1e-6


def rope_arguments(dtype: mx.Dtype, tokens: int, heads: int, dim: int, halves: bool) -> Arguments:
    angles = normal(mx.float32, tokens, dim // 2, seed=3)
    return normal(dtype, tokens, heads, dim), mx.cos(angles), mx.sin(angles), halves


def sums(dtype: mx.Dtype, n: int) -> Arguments:
    return normal(dtype, n), normal(dtype, n, seed=1), 2.5, -0.75


def quantized_arguments(dtype: mx.Dtype, rows: int, outputs: int, width: int, bits: int, group: int) -> Arguments:
    return normal(dtype, rows, width), *mx.quantize(normal(dtype, outputs, width, seed=1), group, bits)


def expert_arguments(
    dtype: mx.Dtype, tokens: int, experts: int, chosen: int, outputs: int, width: int, bits: int, group: int
) -> Arguments:
    """Rows of x, their choices in the order of the experts, and the experts' matrices."""
    scores = mx.random.uniform(shape=(tokens, experts), key=mx.random.key(3))
    flat = mx.argsort(scores, axis=1)[:, :chosen].reshape(-1).astype(mx.int32)
    order = mx.argsort(flat).astype(mx.int32)
    choices = SortedChoices(order // chosen, flat[order], tokens)
    return normal(dtype, tokens, width), choices, *mx.quantize(normal(dtype, experts, outputs, width), group, bits)


def decode_arguments(
    dtype: mx.Dtype, heads: int, kv_heads: int, dim: int, lengths: list[int], window: int, chunk: int
) -> Arguments:
    batch, most = len(lengths), max(lengths)
    shared = (batch, kv_heads, most, dim)
    q, k, v = normal(dtype, batch, heads, dim), normal(dtype, *shared, seed=1), normal(dtype, *shared, seed=2)
    return q, k, v, mx.array(lengths, mx.int32), dim**-0.5, window, chunk


def packed_arguments(dtype: mx.Dtype, *shape: Any) -> Arguments:
    """The shape of `decode_arguments`, then bits and group size."""
    q, k, v, *rest = decode_arguments(dtype, *shape[:-2])
    bits, group = shape[-2:]
    return q, tuple(mx.quantize(k, group, bits)), tuple(mx.quantize(v, group, bits)), *rest


def pages(dtype: mx.Dtype, lengths: list[int], kv_heads: int, block: int, dim: int) -> tuple[mx.array, ...]:
    """Keys and values of a pool with two blocks too many, and tables of its blocks in no order."""
    width, count = -(-max(lengths) // block), sum(-(-n // block) for n in lengths) + 2
    shuffled = cast(list[int], mx.random.permutation(count, key=mx.random.key(7)).tolist())
    tables = [[shuffled.pop() if i * block < n else 0 for i in range(width)] for n in lengths]
    shape = (kv_heads, count, block, dim)
    return normal(dtype, *shape, seed=1), normal(dtype, *shape, seed=2), mx.array(tables, mx.int32)


def paged_decode_arguments(
    dtype: mx.Dtype, heads: int, kv_heads: int, dim: int, lengths: list[int], block: int, window: int, chunk: int
) -> Arguments:
    q = normal(dtype, len(lengths), heads, dim)
    held = pages(dtype, lengths, kv_heads, block, dim)
    return q, *held, mx.array(lengths, mx.int32), dim**-0.5, window, chunk


def paged_prefill_arguments(
    dtype: mx.Dtype, heads: int, kv_heads: int, dim: int, spans: list[tuple[int, int]], block: int, window: int,
    near: list[int] | None = None,
) -> Arguments:  # fmt: skip
    q = normal(dtype, sum(new for new, _ in spans), heads, dim)
    held = pages(dtype, [total for _, total in spans], kv_heads, block, dim)
    return q, *held, spans, dim**-0.5, window, None if near is None else mx.array(np.array(near, np.uint64))


def parts_arguments(dtype: mx.Dtype, rows: int, splits: int, dim: int) -> Arguments:
    parts, tops = normal(mx.float32, rows, splits, dim), normal(mx.float32, rows, splits, seed=1)
    return parts, tops, mx.exp(normal(mx.float32, rows, splits, seed=2)), dtype


def flash_arguments(
    dtype: mx.Dtype, heads: int, kv_heads: int, dim: int, spans: list[tuple[int, int]], window: int
) -> Arguments:
    tokens, keys = sum(new for new, _ in spans), sum(total for _, total in spans)
    k, v = normal(dtype, kv_heads, keys, dim, seed=1), normal(dtype, kv_heads, keys, dim, seed=2)
    return normal(dtype, tokens, heads, dim), k, v, spans, dim**-0.5, window


CATALOG = {
    entry.kernel.name: entry
    for entry in (
        KernelEntry(AXPBY, axpby, lambda t: [sums(t, n) for n in (1, 257)], lambda t: sums(t, 65536), 3),
        KernelEntry(
            RMS_NORM,
            rms_norm,
            lambda t: [norm_arguments(t, *shape) for shape in ((67, 300), (1, 1), (67, 37))],
            lambda t: norm_arguments(t, 1024, 128),
            4,
        ),
        KernelEntry(
            RESIDUAL_RMS_NORM,
            residual_rms_norm,
            lambda t: [residual_arguments(t, *shape) for shape in ((67, 300), (67, 37))],
            lambda t: residual_arguments(t, 1024, 128),
            5,
        ),
        KernelEntry(
            ROPE,
            rope,
            lambda t: [rope_arguments(t, 5, 3, 10, True), rope_arguments(t, 5, 3, 10, False)],
            lambda t: rope_arguments(t, 64, 8, 128, True),
            3,
        ),
        KernelEntry(
            SWIGLU,
            swiglu,
            lambda t: [(normal(t, 3, 14),), (normal(t, 1, 2),)],
            lambda t: (normal(t, 32, 2048),),
            2.5,
        ),
        KernelEntry(
            SOFTMAX,
            softmax,
            lambda t: [(4 * normal(t, *shape),) for shape in ((4, 333), (3, 1), (2, 17001))],
            lambda t: (normal(t, 64, 1024),),
            6,
        ),
        KernelEntry(
            QUANTIZED_MATVEC,
            quantized_matvec,
            lambda t: [
                quantized_arguments(t, 1, *shape) for shape in ((70, 2112, 4, 64), (9, 1056, 3, 32), (5, 384, 8, 128))
            ],
            lambda t: quantized_arguments(t, 1, 4096, 256, 4, 64),
            2 * 4096,
        ),
        KernelEntry(
            QUANTIZED_ROWS,
            quantized_rows,
            lambda t: [
                quantized_arguments(t, *shape)
                for shape in ((2, 70, 1344, 4, 64), (16, 9, 96, 2, 32), (8, 5, 96, 6, 32))
            ],
            lambda t: quantized_arguments(t, 4, 4096, 256, 4, 64),
            2 * 4096,
            once="weight scales biases",
        ),
        KernelEntry(
            EXPERT_ROWS,
            expert_rows,
            lambda t: [
                expert_arguments(t, *shape)
                for shape in ((2, 5, 2, 70, 1344, 4, 64), (16, 4, 3, 9, 96, 2, 32), (8, 3, 1, 5, 96, 6, 32))
            ],
            lambda t: expert_arguments(t, 4, 8, 2, 1024, 256, 4, 64),
            2 * 1024 * 2,
            once="",
        ),
        KernelEntry(
            QUANTIZED_TILES,
            quantized_tiles,
            lambda t: [
                (*quantized_arguments(t, *shape), splits)
                for shape, splits in (*(((33, 70, 96, 4, 32), 2), ((31, 9, 64, 3, 64), 1), ((1, 1, 256, 8, 128), 3)),)
            ],
            lambda t: (*quantized_arguments(t, 64, 64, 512, 4, 64), 2),
            2 * 64,
            once="",
        ),
        KernelEntry(
            SPLIT_SUM,
            split_sum,
            lambda t: [(normal(mx.float32, *shape), t) for shape in ((3, 33, 9), (1, 1, 1))],
            lambda t: (normal(mx.float32, 4, 64, 256), t),
            1,
        ),
        KernelEntry(
            DECODE_ATTENTION,
            decode_attention_parts,
            lambda t: [
                decode_arguments(t, *shape)
                for shape in (
                    *((14, 2, 80, [70, 67], 0, 32), (7, 7, 64, [33], 20, 16), (2, 1, 8, [1], 0, 8)),
                    (4, 1, 256, [9, 8, 7], 7, 8),
                )
            ],
            lambda t: decode_arguments(t, 16, 8, 128, [512], 0, 0),
            4 * 512,
        ),
        KernelEntry(
            PACKED_ATTENTION,
            packed_parts,
            lambda t: [
                packed_arguments(t, *shape)
                for shape in (
                    *((14, 2, 96, [70, 67], 0, 32, 4, 32), (7, 7, 64, [33], 20, 16, 8, 64)),
                    *((2, 1, 32, [1], 0, 8, 4, 32), (4, 1, 256, [9, 8, 7], 7, 8, 8, 128)),
                )
            ],
            lambda t: packed_arguments(t, 16, 8, 128, [512], 0, 0, 4, 64),
            4 * 512,
        ),
        KernelEntry(
            PAGED_DECODE,
            paged_decode_parts,
            lambda t: [
                paged_decode_arguments(t, *shape)
                for shape in (
                    *((14, 2, 80, [70, 67], 16, 0, 32), (7, 7, 64, [33], 5, 20, 16)),
                    (4, 1, 256, [9, 8, 7], 4, 7, 8),
                )
            ],
            lambda t: paged_decode_arguments(t, 16, 8, 128, [512], 32, 0, 0),
            4 * 512,
            once="keys values",
        ),
        KernelEntry(
            PAGED_PREFILL,
            paged_prefill,
            lambda t: [
                paged_prefill_arguments(t, *shape)
                for shape in (
                    *((2, 1, 80, [(33, 40), (1, 5)], 8, 0), (7, 7, 7, [(17, 17)], 3, 3)),
                    (2, 1, 16, [(3, 70), (2, 2)], 8, 0, [2**64 - 1, 2**64 - 1, 2**64 - 3, 1, 1]),  # two trees
                    (1, 1, 256, [(9, 18)], 16, 0),
                )
            ],
            lambda t: paged_prefill_arguments(t, 4, 2, 128, [(128, 128)], 32, 0),
            4 * 64,
            once="q",
        ),
        KernelEntry(
            COPY_BLOCKS,
            copied_blocks,
            lambda t: [(normal(t, 3, 5, 8, 80), mx.array([4, 0, 4])), (normal(t, 1, 2, 3, 7), mx.array([1]))],
            lambda t: (normal(t, 8, 20, 16, 128), mx.array([3, 18])),
            0,
            once="pool",
        ),
        KernelEntry(
            MERGE_ATTENTION,
            merge_attention,
            lambda t: [parts_arguments(t, *shape) for shape in ((3, 33, 80), (1, 1, 256), (5, 2, 7))],
            lambda t: parts_arguments(t, 32, 16, 128),
            2,
        ),
        KernelEntry(
            FLASH_ATTENTION,
            flash_attention,
            lambda t: [
                flash_arguments(t, *shape)
                for shape in (
                    *((2, 1, 80, [(33, 40), (1, 5)], 0), (7, 7, 7, [(17, 17)], 3)),
                    (1, 1, 256, [(9, 18)], 0),
                )
            ],
            lambda t: flash_arguments(t, 4, 2, 128, [(128, 128)], 0),
            4 * 64,
            once="q",
        ),
    )
}
