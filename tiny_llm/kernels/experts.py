"""Multiply rows by the quantized matrices of their chosen experts, reading each matrix once."""

from typing import NamedTuple

import mlx.core as mx

from tiny_llm.kernels.launch import Kernel, On, expect_array
from tiny_llm.kernels.quantized import EACH, HELD, MAX_SIMDGROUPS, THREADGROUPS, TILE, format_of, most_rows

EXPERT_ROWS = Kernel("expert_rows", "x rows experts begins weight scales biases", "out")


class SortedChoices(NamedTuple):
    """R choices of experts, sorted by expert. `most`: the most choices that any expert may have."""

    rows: mx.array  # (R,) int32: the row of x that a choice multiplies
    experts: mx.array  # (R,) int32, ascending
    most: int


def begins_of(experts: mx.array, places: int) -> mx.array:
    """Return where each chosen expert's choices begin among the sorted `experts` (R,), and where the last end.

    [2, 2, 5] with 4 places → [0, 2, 3, 3, 3]: place 0 has two choices, place 1 has one, the others are empty.
    """
    changes = (experts[1:] != experts[:-1]).astype(mx.int32)
    place_of = mx.concatenate(
        [mx.zeros(1, mx.int32), mx.cumsum(changes)]
    )  # (R,): 0 for the first chosen expert, 1 for the next
    before = place_of[None, : experts.size] < mx.arange(places + 1)[:, None]
    return before.sum(axis=1).astype(mx.int32)


def expert_rows_plain(
    x: mx.array, choices: SortedChoices, weight: mx.array, scales: mx.array, biases: mx.array
) -> mx.array:
    """Compute `expert_rows` with a copy of the unpacked matrix for each choice, in float32."""
    bits, group = format_of("expert_rows", x, weight[0], scales[0], biases[0])
    experts = choices.experts
    if experts.size == 0:
        return mx.zeros((0, weight.shape[1]), x.dtype)
    wide = scales[experts].astype(mx.float32), biases[experts].astype(mx.float32)
    matrices = mx.dequantize(weight[experts], *wide, group_size=group, bits=bits)  # (R, N, K)
    chosen = x[choices.rows].astype(mx.float32)
    return (matrices @ chosen[..., None])[..., 0].astype(x.dtype)


def expert_rows(
    x: mx.array, choices: SortedChoices, weight: mx.array, scales: mx.array, biases: mx.array, on: On = None
) -> mx.array:
    """Multiply row rows[i] of x by the matrix of expert experts[i], for each choice i: (R, N).

    x (X, K), weight (E, N, K bits / 32) uint32, scales and biases (E, N, K / group) of x's dtype. Sums are in float32.
    Each chosen expert's matrix is read once. Raises ValueError for other shapes, and where an expert may have more than
    16 choices (8 where the bits do not divide 32).
    """
    expect_array("expert_rows weight", weight, (None, None, None), mx.uint32)
    expect_array("expert_rows rows", choices.rows, choices.experts.shape, mx.int32)
    expect_array("expert_rows experts", choices.experts, (None,), mx.int32)
    bits, group = format_of("expert_rows", x, weight[0], scales[0], biases[0])
    if choices.most > most_rows(bits):
        raise ValueError(f"expert_rows: expected up to {most_rows(bits)} rows an expert, found {choices.most}; split x")
    num_experts, outputs, _ = weight.shape
    columns, num_choices = x.shape[1], choices.rows.shape[0]
    places = min(num_choices, num_experts)
    count = max(1, choices.most)
    step = 32 * 32 // (1 if 32 % bits else bits)  # columns that a simdgroup takes at once
    each = max(1, min(EACH, HELD // (step // 32), HELD // count))
    simdgroups = max(2, min(MAX_SIMDGROUPS // 2, outputs // (each * THREADGROUPS)))
    tile = max(1, TILE // count // step) * step
    groups = max(1, -(-outputs // (simdgroups * each)))  # threadgroups that share an expert's rows
    inputs = (x, choices.rows, choices.experts, begins_of(choices.experts, places), weight, scales, biases)
    template = {"T": x.dtype, "BITS": bits, "GROUP": group, "M": count, "N": outputs, "K": columns}
    template |= {"SIMDGROUPS": simdgroups, "ROWS": each, "TILE": tile}
    return EXPERT_ROWS(
        *inputs,
        plain=lambda: [expert_rows_plain(x, choices, weight, scales, biases)],
        like=[((num_choices, outputs), x.dtype)],
        grid=(groups * simdgroups * 32, places, 1),
        threadgroup=(simdgroups * 32, 1, 1),
        template=template,
        on=on,
    )[0]
