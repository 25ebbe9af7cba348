"""The types of numbers in GGUF files: what a block of each is made of, and how it becomes MLX's format.

A block holds the numbers of one row that share their scales. Where 32 numbers have a scale and a bias of their own,
w = scale · value + bias, they stay packed: in 4 bits, or in 8 where the file has 5 or 8. Values are never rounded.
Scales are float16 as in the files; those of Q4_K and Q5_K, products of two numbers, are rounded to float16. Q6_K has a
scale for 16 numbers, which MLX's format has not, so its numbers become float16.
(github.com/ggml-org/ggml, ggml-common.h; MLX's own reader is mlx/io/gguf_quants.cpp)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

GROUP = 32  # packed numbers that share a scale
STRIP = 2**24  # bytes of blocks that are unpacked at a time

Bytes = NDArray[Any]  # uint8
Floats = NDArray[Any]  # float32


class Groups(NamedTuple):
    """Packed numbers: values (n, GROUP), a scale and a bias for each row of them, (n,)."""

    values: Bytes
    scales: Floats
    biases: Floats


class BlockType(NamedTuple):
    """A type: numbers in a block, bytes of a block, and what the numbers become.

    `bits` are those of a packed number; 0 means dense. `dtype` is the type of dense numbers, and of scales. `groups` or
    `floats` unpacks blocks (n, size) that are not floats already. `grows_to`: a larger form that the numbers get here.
    """

    name: str
    length: int
    size: int
    bits: int = 0
    dtype: str = "F16"
    groups: Callable[[Bytes], Groups] | None = None
    floats: Callable[[Bytes], Floats] | None = None
    grows_to: str = ""


def read_blocks(path: Path, begin: int, size: int, kind: BlockType) -> dict[str, mx.array]:
    """Return the numbers of `size` bytes of blocks from byte `begin` on, flat and evaluated.

    {"weight", "scales", "biases"} if they are packed, or {"weight"}. Blocks are read and unpacked in strips, so that
    little memory is needed beside the result. Raises ValueError where the file ends.
    """
    parts: dict[str, list[mx.array]] = {}
    strip = max(1, STRIP // kind.size) * kind.size
    with path.open("rb") as file:
        file.seek(begin)
        for done in range(0, size, strip):
            count = min(strip, size - done)
            raw = np.fromfile(file, np.uint8, count)
            if len(raw) < count:
                raise ValueError(
                    f"{path}: expected {size} bytes from byte {begin} on, found less: the file has changed"
                )
            for name, array in _unpacked(raw.reshape(-1, kind.size), kind).items():
                parts.setdefault(name, []).append(array)
    whole = {}
    for name in list(parts):
        arrays = parts.pop(name)
        whole[name] = mx.concatenate(arrays)
        mx.eval(whole[name])
    return whole


def _unpacked(blocks: Bytes, kind: BlockType) -> dict[str, mx.array]:
    """Return the arrays of some blocks, flat."""
    if kind.groups is not None:
        values, scales, biases = kind.groups(blocks)
        words = values if kind.bits == 8 else values[:, 0::2] | values[:, 1::2] << 4
        return {
            "weight": mx.array(words.reshape(-1).view(np.uint32)),
            "scales": mx.array(scales.astype(np.float16).reshape(-1)),
            "biases": mx.array(biases.astype(np.float16).reshape(-1)),
        }
    if kind.floats is not None:
        return {"weight": mx.array(kind.floats(blocks).astype(np.float16).reshape(-1))}
    flat = mx.array(blocks.reshape(-1))
    return {"weight": flat.view(DTYPES[kind.dtype])}


def _half(blocks: Bytes, place: int) -> Floats:
    """Return the float16 at a byte of each block, (n, 1) in float32."""
    return blocks[:, place : place + 2].view(np.float16).astype(np.float32)


def _nibbles(data: Bytes) -> Bytes:
    """Return the numbers of 4 bits in data (n, 16): (n, 32). The low halves of all bytes come first."""
    pairs = data.reshape(-1, GROUP // 2)
    return np.concatenate([pairs & 15, pairs >> 4], axis=1)


def _fifth_bits(data: Bytes) -> Bytes:
    """Return the bits of data (n, 4), lowest first, as 0 or 16: (n, 32)."""
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def _q4_0(blocks: Bytes) -> Groups:
    scale = _half(blocks, 0)
    return Groups(_nibbles(blocks[:, 2:]), scale, -8 * scale)


def _q4_1(blocks: Bytes) -> Groups:
    return Groups(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Bytes) -> Groups:
    scale = _half(blocks, 0)
    values = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return Groups(values, scale, -16 * scale)


def _q5_1(blocks: Bytes) -> Groups:
    values = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return Groups(values, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Bytes) -> Groups:
    scale = _half(blocks, 0)
    return Groups(blocks[:, 2:] ^ 128, scale, -128 * scale)  # a signed number plus 128


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Return the scales and biases of the 8 groups of each block of Q4_K or Q5_K, (n, 8).

    Bytes 4 to 15 hold eight scales and eight minima of 6 bits. The first four of each lie in the low 6 bits of bytes 0
    to 3 and 4 to 7. The last four are made of the high 2 bits of the same bytes and the halves of bytes 8 to 11.
    """
    first, second, third = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], axis=1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], axis=1)
    return _half(blocks, 0) * scales, -_half(blocks, 2) * minima


def _k_nibbles(data: Bytes) -> Bytes:
    """Return numbers of 4 bits, (n, 8, 32) of data (n, 128): each 32 bytes hold a low group, then a high one."""
    pairs = data.reshape(-1, 4, 1, GROUP)
    halves = np.concatenate([pairs & 15, pairs >> 4], axis=2)
    return halves.reshape(-1, 8, GROUP)


def _q4_k(blocks: Bytes) -> Groups:
    values = _k_nibbles(blocks[:, 16:])
    return Groups(values.reshape(-1, GROUP), *_k_scales(blocks))


def _q5_k(blocks: Bytes) -> Groups:
    place = np.arange(8, dtype=np.uint8)[:, None]
    high = blocks[:, None, 16:48] >> place & 1  # (n, 8, 32): bit i of each byte belongs to group i
    values = _k_nibbles(blocks[:, 48:]) | high << 4
    return Groups(values.reshape(-1, GROUP), *_k_scales(blocks))


def _q6_k(blocks: Bytes) -> Floats:
    """Return the numbers (n, 256): 128 bytes of low halves, 64 of high 2 bits, 16 signed scales and a common one."""
    pairs = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([pairs & 15, pairs >> 4], axis=2)
    low = low.reshape(-1, 256)
    place = np.array([0, 2, 4, 6], dtype=np.uint8)
    quarters = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = quarters >> place[:, None] & 3
    high = high.reshape(-1, 256)
    values = low | high << 4
    signed = values.astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8)
    scales = np.repeat(scales, 16, axis=1)
    scaled: Floats = signed * scales
    return scaled * _half(blocks, 208)


DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
BLOCKS = {  # by the number that the format gives a type
    0: BlockType("F32", 1, 4, dtype="F32"),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18, 4, groups=_q4_0),
    3: BlockType("Q4_1", 32, 20, 4, groups=_q4_1),
    6: BlockType("Q5_0", 32, 22, 8, groups=_q5_0, grows_to="in 8 bits"),
    7: BlockType("Q5_1", 32, 24, 8, groups=_q5_1, grows_to="in 8 bits"),
    8: BlockType("Q8_0", 32, 34, 8, groups=_q8_0),
    12: BlockType("Q4_K", 256, 144, 4, groups=_q4_k),
    13: BlockType("Q5_K", 256, 176, 8, groups=_q5_k, grows_to="in 8 bits"),
    14: BlockType("Q6_K", 256, 210, floats=_q6_k, grows_to="as float16"),
    30: BlockType("BF16", 1, 2, dtype="BF16"),
}
UNREADABLE = dict(
    zip(
        (9, 10, 11, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 34, 35, 39, 40),
        "Q8_1 Q2_K Q3_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M TQ1_0 "
        "TQ2_0 MXFP4 NVFP4".split(),
        strict=True,
    )
)
