"""Random programs of collectives against a numpy model of 32 lanes."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_llm.kernels.sim import Simulator, metal_kernel

LANES = np.arange(32)
Lanes = Any  # (32,) int32


def moved(v: Lanes, source: Any, size: int, otherwise: Any) -> Lanes:
    """Lane i takes v[source[i]]; `otherwise` where the source is outside its group of `size` lanes."""
    inside = (source >= LANES // size * size) & (source < LANES // size * size + size)
    return np.where(inside, v[np.clip(source, 0, 31)], otherwise)


def reduced(v: Lanes, size: int, operation: Callable[..., Any]) -> Lanes:
    return np.repeat(operation(v.reshape(-1, size), axis=1), size).astype(np.int32)


def prefix(v: Lanes, size: int, exclusive: bool) -> Lanes:
    total = np.cumsum(v.reshape(-1, size), axis=1).reshape(-1).astype(np.int32)
    return total - v if exclusive else total


# Metal's text and the model, for a value v (32,) and a number 0 ≤ k < size
OPERATIONS: dict[str, tuple[int, str, Callable[[Lanes, int], Lanes]]] = {}
for name, size in (("simd", 32), ("quad", 4)):
    first = LANES // size * size
    OPERATIONS |= {
        f"{name}_sum": (size, f"{name}_sum(v)", lambda v, k, s=size: reduced(v, s, np.sum)),
        f"{name}_max": (size, f"{name}_max(v)", lambda v, k, s=size: reduced(v, s, np.max)),
        f"{name}_min": (size, f"{name}_min(v)", lambda v, k, s=size: reduced(v, s, np.min)),
        f"{name}_and": (size, f"{name}_and(v)", lambda v, k, s=size: reduced(v, s, np.bitwise_and.reduce)),
        f"{name}_or": (size, f"{name}_or(v)", lambda v, k, s=size: reduced(v, s, np.bitwise_or.reduce)),
        f"{name}_xor": (size, f"{name}_xor(v)", lambda v, k, s=size: reduced(v, s, np.bitwise_xor.reduce)),
        f"{name}_inclusive": (size, f"{name}_prefix_inclusive_sum(v)", lambda v, k, s=size: prefix(v, s, False)),
        f"{name}_exclusive": (size, f"{name}_prefix_exclusive_sum(v)", lambda v, k, s=size: prefix(v, s, True)),
        f"{name}_broadcast": (size, f"{name}_broadcast(v, @)", lambda v, k, f=first: v[f + k]),
        f"{name}_shuffle": (
            size, f"{name}_shuffle(v, ushort((lane * 7 + @) % {size}))",
            lambda v, k, s=size, f=first: v[f + (LANES * 7 + k) % s]),
        f"{name}_xor_shuffle": (
            size, f"{name}_shuffle_xor(v, @)", lambda v, k, s=size, f=first: v[f + ((LANES - f) ^ k)]),
        f"{name}_down": (size, f"{name}_shuffle_down(v, @)", lambda v, k, s=size: moved(v, LANES + k, s, v)),
        f"{name}_up": (size, f"{name}_shuffle_up(v, @)", lambda v, k, s=size: moved(v, LANES - k, s, v)),
        f"{name}_rotate_down": (
            size, f"{name}_shuffle_rotate_down(v, @)", lambda v, k, s=size, f=first: v[f + (LANES - f + k) % s]),
        f"{name}_rotate_up": (
            size, f"{name}_shuffle_rotate_up(v, @)", lambda v, k, s=size, f=first: v[f + (LANES - f - k) % s]),
    }  # fmt: skip
OPERATIONS |= {
    "fill_down": (32, "simd_shuffle_and_fill_down(v, v * 3, @)", lambda v, k: np.concatenate([v, v * 3])[LANES + k]),
    "fill_up": (32, "simd_shuffle_and_fill_up(v, v * 3, @)", lambda v, k: np.concatenate([v * 3, v])[LANES + 32 - k]),
    "first": (32, "simd_broadcast_first(v)", lambda v, k: np.full(32, v[0])),
    "ballot": (
        32, "int(uint(ulong(simd_ballot(v % 3 == 0))))",
        lambda v, k: np.full(32, int(sum(1 << i for i in range(32) if v[i] % 3 == 0)), np.int64).astype(np.int32)),
    "all": (32, "int(simd_all(v > @))", lambda v, k: np.full(32, int((v > k).all()))),
    "any": (32, "int(simd_any(v > @))", lambda v, k: np.full(32, int((v > k).any()))),
    "is_first": (32, "int(simd_is_first()) + v", lambda v, k: (LANES == 0) + v),
    "quad_first": (4, "quad_broadcast_first(v)", lambda v, k: v[LANES // 4 * 4]),
    "quad_is_first": (4, "int(quad_is_first()) + v", lambda v, k: (LANES % 4 == 0) + v),
    "quad_all": (32, "int(quad_all(v > @ * 999))", lambda v, k: reduced(v > k * 999, 4, np.all)),
    "quad_any": (32, "int(quad_any(v > @ * 999))", lambda v, k: reduced(v > k * 999, 4, np.any)),
    "quad_ballot": (
        4, "int(uint(quad_ballot(v % 3 == 0)))", lambda v, k: reduced((v % 3 == 0) << (LANES % 4), 4, np.sum)),
}  # fmt: skip


@pytest.fixture(scope="module")
def kernel() -> Any:
    """All operations in one kernel, chosen by number, so that a random program compiles nothing new."""
    cases = [
        f"    case {i}: v = {text.replace('@', 'k')}; break;" for i, (_, text, _) in enumerate(OPERATIONS.values())
    ]
    body = [
        "uint lane = thread_index_in_simdgroup, i = thread_position_in_grid.x;",
        "int v = start[i];",
        "for (int step = 0; step < steps; step++) {",
        "  int k = program[3 * step + 1];",
        "  switch (program[3 * step]) {",
        *cases,
        "  }",
        "  v = (v ^ int(lane) * program[3 * step + 2]) & 0xffff;",
        "}",
        "out[i] = v;",
    ]
    return metal_kernel("collectives", ["start", "program", "steps"], ["out"], "\n".join(body))


steps = st.lists(
    st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 31), st.integers(0, 99)), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(steps=steps, start=st.lists(st.integers(0, 0xFFFF), min_size=64, max_size=64), seed=st.integers(0, 3))
def test_random_programs(kernel: Any, steps: list[tuple[str, int, int]], start: list[int], seed: int) -> None:
    numbers, program = {name: i for i, name in enumerate(OPERATIONS)}, []
    expected = np.array(start, np.int32).reshape(2, 32)
    for name, k, mix in steps:
        size, _, model = OPERATIONS[name]
        program += [numbers[name], k % size, mix]
        expected = np.stack([(model(v, k % size).astype(np.int32) ^ (LANES * mix)) & 0xFFFF for v in expected])
    program += [0] * 9  # never so short as to become constant memory, which would compile anew
    (got,) = kernel(
        inputs=[mx.array(start, mx.int32), mx.array(program, mx.int32), len(steps)],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(64,)],
        output_dtypes=[mx.int32],
        simulator=Simulator(seed=seed),
    )
    assert np.array(got).reshape(2, 32).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_sums_of_floats_are_within_rounding(dtype: mx.Dtype) -> None:
    x = mx.random.normal((64,), key=mx.random.key(0)).astype(dtype)
    body = "uint i = thread_position_in_grid.x;\nout[i] = simd_sum(x[i]);"
    call = {"grid": (64, 1, 1), "threadgroup": (64, 1, 1), "output_shapes": [(64,)], "output_dtypes": [dtype]}
    (got,) = metal_kernel("sums", ["x"], ["out"], body)(inputs=[x], **call)
    exact = np.array(x.astype(mx.float32), np.float64).reshape(2, 32).sum(1)
    rounding = {mx.float32: 2e-6, mx.float16: 1e-2, mx.bfloat16: 1e-1}[dtype]
    np.testing.assert_allclose(np.array(got.astype(mx.float32))[::32], exact, atol=rounding)
