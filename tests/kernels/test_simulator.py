"""What the simulator does is what Metal does: places, edge groups, memory, vectors, arithmetic, matrices, refusals."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.kernels.sim import CompileError, KernelError, Simulator, compiler, metal_kernel

Run = Callable[..., list[mx.array]]
X = mx.arange(64).astype(mx.float32)


def test_every_attribute_in_full_and_edge_groups() -> None:
    """A grid of 10 × 5 × 2 in groups of 4 × 3 × 2: groups at the edges are smaller."""
    vectors = ["thread_position_in_grid", "thread_position_in_threadgroup", "threadgroup_position_in_grid",
               "threads_per_threadgroup", "threads_per_grid", "threadgroups_per_grid",
               "dispatch_threads_per_threadgroup", "grid_size"]  # fmt: skip
    scalars = ["thread_index_in_threadgroup", "thread_index_in_simdgroup", "simdgroup_index_in_threadgroup",
               "simdgroups_per_threadgroup", "dispatch_simdgroups_per_threadgroup", "threads_per_simdgroup",
               "thread_execution_width", "thread_index_in_quadgroup", "quadgroup_index_in_threadgroup",
               "quadgroups_per_threadgroup"]  # fmt: skip
    width = 3 * len(vectors) + len(scalars)
    lines = ["uint3 p = thread_position_in_grid;", f"device uint* to = out + (p.x + 10 * (p.y + 5 * p.z)) * {width};"]
    lines += [f"to[{3 * i}] = {v}.x; to[{3 * i + 1}] = {v}.y; to[{3 * i + 2}] = {v}.z;" for i, v in enumerate(vectors)]
    lines += [f"to[{3 * len(vectors) + i}] = {s};" for i, s in enumerate(scalars)]
    (got,) = metal_kernel("places", [], ["out"], "\n".join(lines))(
        inputs=[],
        grid=(10, 5, 2),
        threadgroup=(4, 3, 2),
        output_shapes=[(2, 5, 10, width)],
        output_dtypes=[mx.uint32],
        simulator=Simulator(check=True, seed=3),
    )
    for (z, y, x), row in zip(np.ndindex(2, 5, 10), np.array(got).reshape(-1, width), strict=True):
        grid, full, at = np.array([10, 5, 2]), np.array([4, 3, 2]), np.array([x, y, z])
        group = at // full
        size = np.minimum(full, grid - group * full)
        inside = at - group * full
        index = inside[0] + size[0] * (inside[1] + size[1] * inside[2])
        threads = size.prod()
        expected = [at, inside, group, size, grid, -(-grid // full), full, grid]
        rest = [index, index % 32, index // 32, -(-threads // 32), 1, 32, 32, index % 4, index // 4, -(-threads // 4)]
        assert row.tolist() == [*np.concatenate(expected).tolist(), *map(int, rest)]


BODIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "vectors and swizzles": (
        "float4 v = ((const device float4*)x0)[i / 4]; float4 w = v.wzyx; v.xz = float2(1, 2); w.yx += v.xy;"
        "out[i] = dot(v, float4(1.0f)) + w.x * 100 + w.y * 10 + (v.xyz * 2.0f).z;",
        lambda x: (3 + x[i4 + 1] + x[i4 + 3]) + (x[i4 + 3] + x[i4 + 1]) * 100 + (x[i4 + 2] + 1) * 10 + 4,
    ),
    "assignment between swizzles": ("float2 a = float2(x0[i], 7), b = a.yx; a.xy = a.yx; out[i] = a.x * 100 + b.y;",
                                    lambda x: 700 + x),
    "three components take four": ("out[i] = sizeof(float3) + sizeof(packed_float3) + sizeof(half4);",
                                   lambda x: x * 0 + 16 + 12 + 8),
    "bits": ("out[i] = as_type<float>(as_type<uint>(x0[i])) + as_type<ushort>(half(1.0h)) + popcount(i) + clz(i);",
             lambda x: x + 0x3C00 + np.array([bin(i).count("1") + 32 - i.bit_length() for i in range(64)])),
    "helpers": ("out[i] = clamp(x0[i], 1.0f, 3.0f) + select(0.0f, 1.0f, i > 2) + mix(0.0f, 2.0f, 0.5f) + min(1, 2) "
                "+ abs(-1.5f) + sign(-2.0f) + fract(1.25f);",
                lambda x: np.clip(x, 1, 3) + (np.arange(64) > 2) + 1 + 1 + 1.5 - 1 + 0.25),
    "a literal is a float": ("out[i] = (x0[i] * 0.1 == x0[i] * 0.1f);", lambda x: x * 0 + 1),
    "maximum of a number and NaN": ("out[i] = max(NAN, x0[i]) + min(x0[i], NAN);", lambda x: 2 * x),
    "a group's memory is its own": (
        "threadgroup float s[2][16], one; if (i % 32 == 0) one = i; threadgroup_barrier(mem_flags::mem_threadgroup);"
        "s[(i / 16) % 2][i % 16] = x0[i]; threadgroup_barrier(mem_flags::mem_threadgroup);"
        "out[i] = s[1 - (i / 16) % 2][i % 16] + one;",
        lambda x: x[np.arange(64) ^ 16] + np.arange(64) // 32 * 32,
    ),
}  # fmt: skip
i4 = np.arange(64) // 4 * 4


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name: str, run: Run) -> None:
    body, model = BODIES[name]
    (got,) = run("uint i = thread_position_in_grid.x;\n" + body, [X], group=32)
    np.testing.assert_allclose(np.array(got), model(np.arange(64.0)), rtol=1e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("operation", ["+", "-", "*", "/"])
def test_half_precision_rounds_at_each_operation(dtype: mx.Dtype, operation: str, run: Run) -> None:
    a, b = (mx.random.normal((64,), key=mx.random.key(k)).astype(dtype) for k in (0, 1))
    (got,) = run(f"uint i = thread_position_in_grid.x;\nT c = x0[i] {operation} x1[i];\nout[i] = c {operation} x1[i];",
                 [a, b], dtype=dtype, template=[("T", dtype)])  # fmt: skip
    f = {"+": mx.add, "-": mx.subtract, "*": mx.multiply, "/": mx.divide}[operation]
    wide = [x.astype(mx.float32) for x in (a, b)]
    once = f(*wide).astype(dtype).astype(mx.float32)
    assert got.tolist() == f(once, wide[1]).astype(dtype).tolist()


@pytest.mark.parametrize(("dtype", "name"), [(mx.float32, "float"), (mx.float16, "half"), (mx.bfloat16, "bfloat")])
def test_products_of_simdgroup_matrices(dtype: mx.Dtype, name: str) -> None:
    """C = A Bᵀ + A of 8 × 8, and each lane's share at the place that Apple's hardware gives it."""
    a, b = (mx.random.normal((8, 8), key=mx.random.key(k)).astype(dtype) for k in (0, 1))
    body = f"""simdgroup_matrix<{name}, 8, 8> a, b;
simdgroup_float8x8 c;
simdgroup_load(a, x, 8);
simdgroup_load(b, y, 8, ulong2(0, 0), true);
simdgroup_multiply_accumulate(c, a, b, a);
simdgroup_store(c, out, 8);
more[2 * thread_index_in_simdgroup] = c.thread_elements()[0];
more[2 * thread_index_in_simdgroup + 1] = c.thread_elements()[1];"""
    got, shares = metal_kernel("matrices", ["x", "y"], ["out", "more"], body)(
        inputs=[a, b], grid=(32, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(8, 8), (64,)],
        output_dtypes=[mx.float32] * 2, simulator=Simulator(check=True),
    )  # fmt: skip
    exact = [np.array(m.astype(mx.float32), np.float64) for m in (a, b)]
    np.testing.assert_allclose(np.array(got), exact[0] @ exact[1].T + exact[0], rtol=1e-5, atol=1e-5)
    lane = np.arange(32)
    rows, columns = (lane // 4 & 4) + lane // 2 % 4, (lane // 4 & 2) * 2 + lane % 2 * 2
    assert np.array(shares).reshape(32, 2).tolist() == [
        [float(got[r, c]), float(got[r, c + 1])] for r, c in zip(rows, columns, strict=True)
    ]


def test_integer_atomics_and_compare_exchange() -> None:
    body = """uint i = thread_position_in_grid.x;
atomic_fetch_max_explicit(&out[0], i * 7 % 64, memory_order_relaxed);
atomic_fetch_or_explicit(&out[1], 1u << (i % 32), memory_order_relaxed);
uint seen = atomic_load_explicit(&out[2], memory_order_relaxed);
while (!atomic_compare_exchange_weak_explicit(&out[2], &seen, seen + i, memory_order_relaxed, memory_order_relaxed)) {}
atomic_store_explicit(&out[3], 5u, memory_order_relaxed);"""
    (got,) = metal_kernel("counts", [], ["out"], body, atomic_outputs=True)(
        inputs=[], grid=(64, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(4,)], output_dtypes=[mx.uint32],
        init_value=0, simulator=Simulator(check=True, seed=5),
    )  # fmt: skip
    assert got.tolist() == [63, 2**32 - 1, 64 * 63 // 2, 5]


@pytest.mark.parametrize("contiguous", [True, False])
def test_strided_inputs(contiguous: bool) -> None:
    """With ensure_row_contiguous=False the kernel sees the array as it lies, and its strides."""
    x = mx.arange(60).reshape(5, 12).astype(mx.float32).T[::2, 1:4]
    body = "uint i = thread_position_in_grid.x;\nout[i] = x[elem_to_loc(i, x_shape, x_strides, x_ndim)] + x_strides[0];"
    kernel = metal_kernel("strided", ["x"], ["out"], body, ensure_row_contiguous=contiguous)
    call = {"grid": (18, 1, 1), "threadgroup": (18, 1, 1), "output_shapes": [(18,)], "output_dtypes": [mx.float32]}
    (got,) = kernel(inputs=[x], simulator=Simulator(check=True), **call)
    assert got.tolist() == (x.reshape(-1) + (3 if contiguous else 2)).tolist()


def test_what_is_not_written_is_nan_and_init_value_fills(run: Run) -> None:
    body = "uint i = thread_position_in_grid.x;\nif (i) out[i] = 1;"
    assert np.isnan(run(body, simulator=Simulator())[0][0].item())
    assert run(body, simulator=Simulator(), init_value=3)[0][0].item() == 3


def test_a_seed_gives_the_same_result_again(run: Run) -> None:
    body = "uint i = thread_position_in_grid.x;\nout[0] = i;"
    last = [run(body, simulator=Simulator(seed=seed), init_value=0, group=8)[0][0].item() for seed in (0, 1, 1, 2, 3)]
    assert last[0] == 63
    assert last[1] == last[2]
    assert len(set(last)) > 1


def test_a_compiled_kernel_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "out[thread_position_in_grid.x] = 41;"
    run(body)
    monkeypatch.setattr(compiler, "run", lambda command, what: pytest.fail("compiled again"))
    assert run(body)[0][5].item() == 41


@pytest.mark.skipif(sys.platform == "darwin", reason="there a kernel names the runtime it binds to by its path")
def test_another_copy_of_the_runtime_is_not_loaded_beside_the_first(run: Run, tmp_path: Path) -> None:
    """A kernel would bind to one and be launched by the other, whose way out of a fault is another stack's."""
    run("out[thread_position_in_grid.x] = 1;")
    copy = shutil.copy(compiler.runtime_path(), tmp_path)
    compiler.load_runtime(Path(copy))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_compiler_s_message_is_about_the_metal_file(run: Run) -> None:
    with pytest.raises(CompileError) as caught:
        run("uint i = thread_position_in_grid.x;\n\nout[i] = undefined_name + 1;")
    text = str(caught.value)
    assert "probe.metal:3: " in text
    assert "undefined_name" in text
    assert "3 | out[i] = undefined_name + 1;" in text
    assert "sim_" not in text and "kernel.cpp" not in text


def test_an_attribute_that_metal_has_not_is_pointed_out(run: Run) -> None:
    with pytest.raises(CompileError, match=r"thread_position_in_gird.*did you mean .?thread_position_in_grid"):
        run("out[thread_position_in_gird.x] = 1;")


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    compiler.compiler.cache_clear()
    try:
        with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and none was found; install one"):
            compiler.compiler()
    finally:
        compiler.compiler.cache_clear()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threadgroup": (1025, 1, 1)}, "1025·1·1 = 1025 threads; the most is 1024"),
        ({"grid": (0, 1, 1)}, r"grid \(0, 1, 1\): expected three integers of at least 1"),
        ({"grid": (8, 1)}, r"grid \(8, 1\)"),
        ({"grid": (8.0, 1, 1)}, "three integers"),
        ({"threadgroup": (8, -1, 1)}, r"threadgroup \(8, -1, 1\)"),
        ({"output_shapes": []}, r"expected 1 output_shapes \(out\), found 0"),
        ({"output_shapes": [(-4,)]}, r"output out has shape \(-4,\)"),
        ({"output_shapes": [()]}, r"output out has shape \(\)"),
        ({"output_dtypes": [mx.float32] * 2}, "expected 1 output_dtypes"),
        ({"output_dtypes": [mx.float64]}, "no float64; convert it"),
        ({"inputs": ["text"]}, "expected an mx.array or a number"),
        ({"inputs": [mx.zeros(4, dtype=mx.float64)]}, "no float64"),
        ({"template": [("T", 1.5)]}, "template argument 1.5: expected a bool, an int or a Dtype"),
    ],
)
def test_a_wrong_call_is_refused_in_words(options: dict[str, Any], words: str, run: Run) -> None:
    with mx.stream(mx.cpu), pytest.raises(ValueError, match=words) as caught:
        run("out[0] = 1;", **{"inputs": [X], **options})
    assert not isinstance(caught.value, KernelError)


def test_missing_inputs_are_named() -> None:
    sizes = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)], "output_dtypes": [mx.float32]}
    with pytest.raises(ValueError, match=r"kernel probe: expected 2 inputs \(a, b\), found 1"):
        metal_kernel("probe", ["a", "b"], ["out"], "")(inputs=[X], **sizes)


@pytest.mark.parametrize(
    ("names", "words"), [(([], []), "at least one output"), ((["a", "a"], ["out"]), "two arguments are named 'a'"),
                         ((["no-name"], ["out"]), "'no-name' is no C"), ((["a"], ["a"]), "two arguments")]
)  # fmt: skip
def test_a_wrong_interface_is_refused(names: tuple[list[str], list[str]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metal_kernel("probe", *names, "out[0] = 1;")
