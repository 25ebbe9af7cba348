"""x Wᵀ for a quantized W and any number of rows: tiles of simdgroup matrices, split over K where they are few."""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array
from tiny_llm.kernels.quantized import format_of, most_rows, quantized_matvec, quantized_plain, quantized_rows

QUANTIZED_TILES = Kernel("quantized_tiles", "x weight scales biases M", "out")
SPLIT_SUM = Kernel("split_sum", "parts n", "out")
TILE, DEPTH = 32, 256  # rows and columns of a tile; columns of x that a split has at least
THREADGROUPS = 128  # while the tiles are fewer, K is split
THREADS = 256


def quantized_matmul(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, on: On = None) -> mx.array:
    """x Wᵀ, by the kernel that suits the rows. x (M, K), the result (M, N); W as `quantized.format_of` says."""
    bits, _ = format_of("quantized_matmul", x, weight, scales, biases)
    if x.shape[0] <= 1:
        return quantized_matvec(x, weight, scales, biases, on)
    if x.shape[0] <= most_rows(bits):
        return quantized_rows(x, weight, scales, biases, on)
    splits = splits_for(x.shape[0], weight.shape[0], x.shape[1])
    parts = quantized_tiles(x, weight, scales, biases, splits, on)
    return parts[0] if splits == 1 else split_sum(parts, x.dtype, on)


def splits_for(rows: int, outputs: int, columns: int) -> int:
    """Number of K-splits: enough threadgroups to fill a GPU, each at least DEPTH columns deep."""
    tiles = -(-rows // TILE) * -(-outputs // TILE)
    return max(1, min(THREADGROUPS // max(1, tiles), columns // DEPTH))


def quantized_tiles(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, splits: int = 1, on: On = None
) -> mx.array:
    """x Wᵀ in `splits` sums over a part of the columns each: (splits, M, N), in float32 unless there is one only.

    A tile of 32 × 32 reads its 32 rows of x and of W once: x is read N / 32 times, W M / 32 times. Raises ValueError
    for other shapes, and for splits that would have no columns.
    """
    bits, group = format_of("quantized_tiles", x, weight, scales, biases)
    (rows, columns), outputs = x.shape, weight.shape[0]
    depth = -(-columns // max(1, splits) // TILE) * TILE
    if not 1 <= splits <= -(-columns // depth):
        raise ValueError(f"quantized_tiles: {columns} columns make no {splits} splits of {depth}")
    kind = x.dtype if splits == 1 else mx.float32
    return QUANTIZED_TILES(
        *(x, weight, scales, biases, rows),
        plain=lambda: [tiles_plain(x, weight, scales, biases, depth, splits).astype(kind)],
        like=[((splits, rows, outputs), kind)],
        grid=(-(-outputs // TILE) * 128, max(1, -(-rows // TILE)), splits),
        threadgroup=(128, 1, 1),
        template={
            **{"T": x.dtype, "O": kind, "BITS": bits, "GROUP": group, "N": outputs, "K": columns, "DEPTH": depth},
        },
        on=on,
    )[0]


def tiles_plain(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, depth: int, splits: int) -> mx.array:
    """The twin: what each split leaves of x is multiplied with all of W."""
    column = mx.arange(x.shape[1]) // depth
    wide = [mx.where(column == s, x.astype(mx.float32), 0.0) for s in range(splits)]
    return mx.stack([quantized_plain(part, weight, *(a.astype(mx.float32) for a in (scales, biases))) for part in wide])


def split_sum(parts: mx.array, dtype: mx.Dtype, on: On = None) -> mx.array:
    """Σ over the first axis of parts (splits, M, N) float32, of `dtype`. Reads and writes everything once."""
    expect_array("split_sum parts", parts, (None, None, None), mx.float32)
    splits, *shape = parts.shape
    size = parts.size // max(1, splits)
    return SPLIT_SUM(
        *(parts, size),
        plain=lambda: [parts.sum(0).astype(dtype).reshape(-1)],
        like=[((size,), dtype)],
        grid=(max(1, size), 1, 1),
        threadgroup=(THREADS, 1, 1),
        template={"T": dtype, "SPLITS": splits},
        on=on,
    )[0].reshape(shape)
