"""Copies of a pool's blocks, for copy-on-write. (PagedAttention: arXiv:2309.06180)"""

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array

COPY_BLOCKS = Kernel("copy_blocks", "pool sources blocks count", "out")


def copied_blocks(pool: mx.array, sources: mx.array, on: On = None) -> mx.array:
    """Copy the blocks `sources` (C,) int32 of a pool (Hkv, num_blocks, block, D); result (Hkv, C, block, D).

    Reads and writes each number once. The caller puts the copies where they belong: a slice update of MLX writes in
    place, which no kernel of ours can. Raises ValueError for other shapes.
    """
    expect_array("copy_blocks pool", pool, (None, None, None, None))
    expect_array("copy_blocks sources", sources, (None,), mx.int32)
    heads, blocks, block, dim = pool.shape
    count = sources.shape[0]
    return COPY_BLOCKS(
        pool,
        sources,
        blocks,
        count,
        plain=lambda: [copied_blocks_plain(pool, sources)],
        like=[((heads, count, block, dim), pool.dtype)],
        grid=(block * dim, count, heads),
        threadgroup=(min(256, block * dim), 1, 1),
        template={"T": pool.dtype, "SIZE": block * dim},
        on=on,
    )[0]


def copied_blocks_plain(pool: mx.array, sources: mx.array) -> mx.array:
    """Copy the blocks `sources` by MLX's gather."""
    return pool[:, sources]
