"""x Wᵀ for a quantized W, in MLX's affine format: w = scale · q + bias, one of each for a group of columns of a row."""

import mlx.core as mx

from tiny_llm.config.model import GROUP_SIZES, QUANTIZED_BITS
from tiny_llm.kernels.launch import Kernel, On, expect_array, expect_float

QUANTIZED_MATVEC = Kernel("quantized_matvec", "x weight scales biases", "out")
QUANTIZED_ROWS = Kernel("quantized_rows", "x weight scales biases", "out")
EACH, MAX_SIMDGROUPS = 8, 16  # rows of W that a simdgroup takes together, and simdgroups of a threadgroup
THREADGROUPS = 32  # from here on a group takes more rows of W instead, which share its copy of x
HELD = 64  # numbers of W that a lane holds unpacked, at most: 256 threads leave it 128 registers on any GPU
TILE = 2048  # columns of x that a group holds, over all rows of x
MOST_ROWS = 16  # half of it where a lane takes 32 columns at once, for want of threadgroup memory


def quantized_plain(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
    """The twin: MLX's own operation, in float32."""
    bits, group = format_of("quantized_plain", x, weight, scales, biases)
    wide = (x.astype(mx.float32), weight, scales.astype(mx.float32), biases.astype(mx.float32))
    return mx.quantized_matmul(*wide, transpose=True, group_size=group, bits=bits).astype(x.dtype)


def format_of(name: str, x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array) -> tuple[int, int]:
    """(bits, group size), as the shapes say: x (M, K), weight (N, K bits / 32) uint32, scales and biases (N, K / group)
    like x. Raises ValueError for shapes, dtypes, bits and groups that do not fit together."""
    expect_float(f"{name} x", x)
    expect_array(f"{name} x", x, (None, None))
    expect_array(f"{name} weight", weight, (None, None), mx.uint32)
    rows, columns = weight.shape[0], x.shape[1]
    expect_array(f"{name} scales", scales, (rows, None), x.dtype)
    expect_array(f"{name} biases", biases, scales.shape, x.dtype)
    bits, left = divmod(weight.shape[1] * 32, max(1, columns))
    group, over = divmod(columns, max(1, scales.shape[1]))
    if left or over or bits not in QUANTIZED_BITS or group not in GROUP_SIZES:
        known = f"{', '.join(map(str, QUANTIZED_BITS))} bits in groups of {', '.join(map(str, GROUP_SIZES))}"
        raise ValueError(
            f"{name}: x of {columns} columns, weight {weight.shape} and scales {scales.shape} make no format of {known}"
        )
    return bits, group


def most_rows(bits: int) -> int:
    """Return the most rows of x that the kernels for few rows take, with weights of these bits."""
    return MOST_ROWS // 2 if 32 % bits else MOST_ROWS


def quantized_matvec(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, on: On = None) -> mx.array:
    """x Wᵀ for one row. x (1, K), the result (1, N); W as `format_of` says, in float32.

    Reads W once, and x once for each threadgroup, which takes up to 128 rows of W. Raises ValueError for other
    shapes.
    """
    form = format_of("quantized_matvec", x, weight, scales, biases)
    if x.shape[0] > 1:
        raise ValueError(f"quantized_matvec: expected one row, found {x.shape[0]}; use quantized_matmul")
    return few_rows(QUANTIZED_MATVEC, form, x, weight, scales, biases, on)


def quantized_rows(x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, on: On = None) -> mx.array:
    """x Wᵀ for up to 16 rows, with one pass over W. x (M, K), the result (M, N); W as `format_of` says, in float32.

    Reads W once for all rows, and x once for each threadgroup, which takes up to 64 rows of W. Raises ValueError for
    other shapes, and for more than 8 rows where the bits do not divide 32.
    """
    form = format_of("quantized_rows", x, weight, scales, biases)
    if x.shape[0] > (most := most_rows(form[0])):
        raise ValueError(f"quantized_rows: expected up to {most} rows, found {x.shape[0]}; use quantized_matmul")
    return few_rows(QUANTIZED_ROWS, form, x, weight, scales, biases, on)


def few_rows(
    kernel: Kernel, form: tuple[int, int], x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array, on: On
) -> mx.array:
    (bits, group), (count, columns), rows = form, x.shape, weight.shape[0]
    step = 32 * 32 // (1 if 32 % bits else bits)  # columns that a simdgroup takes at once
    each = EACH if count <= 1 else min(EACH, HELD // (step // 32), HELD // count)
    simdgroups = max(2, min(MAX_SIMDGROUPS if count <= 1 else MAX_SIMDGROUPS // 2, rows // (each * THREADGROUPS)))
    tile = max(1, TILE // max(1, count) // step) * step
    return kernel(
        *(x, weight, scales, biases),
        plain=lambda: [quantized_plain(x, weight, scales, biases)],
        like=[((count, rows), x.dtype)],
        grid=(max(1, -(-rows // (simdgroups * each))) * simdgroups * 32, 1, 1),
        threadgroup=(simdgroups * 32, 1, 1),
        template={
            **{"T": x.dtype, "BITS": bits, "GROUP": group, "M": count, "N": rows, "K": columns},
            **{"SIMDGROUPS": simdgroups, "ROWS": each, "TILE": tile},
        },
        on=on,
    )[0]
