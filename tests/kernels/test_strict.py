"""The strict front end rejects what Apple's compiler rejects, takes what it takes, and names the line."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from tiny_llm.kernels.catalog import CATALOG
from tiny_llm.kernels.sim import Dispatch, Interface, Source

pytest.importorskip("clang.cindex", reason="libclang is in the extra dev")
from tiny_llm.kernels.strict import HELPERS, METAL_HEADERS, strict, strict_faults


def found(body: str, header: str = "", template: Any = ()) -> list[str]:
    """Inputs x, 100 floats in device memory, and w, 3 floats in constant memory; output out."""
    source = Source("probe.metal", body, header, 101, 1)
    dispatch = Dispatch([(4,)], [mx.float32], (4, 1, 1), (4, 1, 1), template)
    interface = Interface("probe", ("x", "w"), ("out",))
    return [f"{f.line}: {f.text}" for f in strict(interface, source, [mx.zeros(100), mx.zeros(3)], dispatch)]


REJECTED = {
    "pointer without a space": ("\nconst float* p = x;\nout[0] = p[0];", "", "2: "),
    "thread pointer without a word": ("float a[2] = {1, 2};\nout[0] = h(a);",
                                      "inline float h(const float* p) { return p[0]; }\n", "101: `p` points to no"),
    "device to threadgroup": ("threadgroup float s[4];\nthreadgroup float* p = s;\np = out;", "", "3: "),
    "constant to a device helper": ("out[0] = h(w);", "inline float h(const device float* p) { return p[0]; }\n",
                                    "1: "),
    "device to an unqualified helper": ("out[0] = h(x);", "inline float h(const float* p) { return p[0]; }\n", "1: "),
    "double": ("float a = 0;\ndouble d = 1;\nout[0] = d + a;", "", "2: Metal has no double"),
    "write through const": ("x[0] = 1;", "", "1: "),
    "recursion": ("out[0] = f(3);", "inline int f(int n) { return n <= 1 ? 1 : n * f(n - 1); }\n",
                  "101: `f` calls itself"),
    "mutual recursion": ("out[0] = f(3);", "int g(int);\ninline int f(int n) { return g(n); }\n"
                         "inline int g(int n) { return n > 0 ? f(n - 1) : 0; }\n", "calls itself"),
    "half times bfloat": ("half a = 1;\nbfloat b = 2;\nout[0] = a * b;", "", "3: "),
    "max of float and int": ("out[0] = max(x[0], 1);", "", "1: call to 'max' is ambiguous"),
    "lambda": ("auto g = [](float a) { return a; };\nout[0] = g(1);", "", "1: Metal has no lambdas"),
    "std": ("out[0] = std::exp(x[0]);", "", "1: use of undeclared identifier 'std'"),
    "initialised threadgroup variable": ("threadgroup float s[4] = {0};\nout[0] = s[0];", "",
                                         "1: a threadgroup variable can't be initialised"),
    "atomic on a plain pointer": ("atomic_fetch_add_explicit(&out[0], 1.0f, memory_order_relaxed);", "", "1: "),
    "new": ("int* p = new int;\nout[0] = *p;", "", "1: "),
    "unknown attribute": ("out[thread_position_in_gird.x] = 1;", "", "1: use of undeclared identifier"),
    "uninitialised variable": ("float a;\nout[0] = a;", "", "2: variable 'a' is uninitialized"),
    "in a template": ("out[0] = T(max(x[0], 1));", "", "1: call to 'max'"),
}  # fmt: skip

REJECTED["a header of MLX's"] = (
    "out[0] = 1;",
    f'\n#include "{HELPERS}"\n',
    "102: MLX's headers are not on the include path",
)
REJECTED["a header that nobody has"] = ("out[0] = 1;", "#include <vector>\n", "101: 'vector' file not found")

ACCEPTED = {
    **{
        f"<{name}>": ("out[0] = metal::exp(x[0]);", f"#include <{name}>\nusing namespace metal;\n")
        for name in METAL_HEADERS
    },
    "ceildiv": ("out[0] = ceildiv(x_shape[0], 7) + ceildiv(uint(5), 2u);", ""),
    "MLX's limits": ("out[0] = Limits<float>::max + Limits<half>::finite_min + Limits<int>::min;", ""),
    "MLX's functions of numbers": ("out[0] = log1p(x[0]) + hypot(x[0], x[1]) + cast_to<bool>(x[0]);", ""),
    "MLX's places": (
        "out[0] = x[elem_to_loc_1(3, x_strides[0])] + x[elem_to_loc<int>(uint3(1, 2, 3), x_shape, x_strides, x_ndim)];"
        "\nLoopedElemToLoc<2> place(x_ndim);\nplace.next(x_shape, x_strides);\nout[1] = x[place.location()];",
        "",
    ),
    "MLX's shuffles": ("out[0] = simd_shuffle_down(uint64_t(1), uint16_t(2)) + simd_shuffle(true, uint16_t(0));", ""),
    "complex numbers": ("complex64_t z = complex64_t(x[0], x[1]);\nz = z * z + z;\nout[0] = z.real - z.imag;", ""),
    "MLX's names of types": ("float16_t h = 1;\nbfloat16_t b = bfloat16_t(x[0]);\nout[0] = float(h) + float(b);", ""),
    "limits and traits": (
        "out[0] = is_same_v<half, float> ? numeric_limits<float>::infinity() : M_2_SQRTPI_F + FLT_EPSILON;",
        "",
    ),
    "swizzles": ("float4 v = float4(1, 2, 3, 4);\nout[0] = v.wzyx.x + v.xy.y;", ""),
    "vector load": ("float4 v = ((const device float4*)x)[0];\nout[0] = dot(v, v);", ""),
    "thread pointer": ("float a[2] = {1, 2};\nout[0] = h(a);", "inline float h(thread float* p) { return p[0]; }\n"),
    "threadgroup pointer": ("threadgroup float s[4];\nthreadgroup float* p = s;\np[0] = x[0];\nout[0] = p[0];", ""),
    "constant helper": ("out[0] = h(w);", "inline float h(constant float* p) { return p[0]; }\n"),
    "half arithmetic": ("half a = half(x[0]);\nout[0] = float(a * a) + metal::fast::exp(x[1]);", ""),
    "shuffles": ("float v = simd_shuffle_down(x[0], ushort(1));\nout[0] = simd_sum(v) + simd_max(v);", ""),
    "barrier": ("threadgroup_barrier(mem_flags::mem_threadgroup);\nout[thread_position_in_grid.x] = x[0];", ""),
    "shape": ("out[0] = x[elem_to_loc(3, x_shape, x_strides, x_ndim)];", ""),
    "matrix": ("simdgroup_float8x8 a;\nsimdgroup_load(a, x, 8);\nsimdgroup_multiply_accumulate(a, a, a, a);", ""),
}


@pytest.mark.parametrize("name", REJECTED)
def test_rejected(name: str) -> None:
    body, header, words = REJECTED[name]
    template = [("T", mx.float32)] if name == "in a template" else ()
    messages = found(body, header, template)
    assert any(words in message for message in messages), messages


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    body, header = ACCEPTED[name]
    assert found(body, header) == []


@pytest.mark.parametrize("name", CATALOG)
def test_the_kernels_pass(name: str) -> None:
    assert strict_faults(CATALOG[name], {}) == []


def test_a_fault_in_a_kernel_s_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "swiglu.metal"
    text = CATALOG["swiglu"].kernel.path.read_text()
    path.write_text(text.replace("float gate =", "double gate ="))
    line = text[: text.index("float gate =")].count("\n") + 1
    faults = strict_faults(CATALOG["swiglu"], {"swiglu": path})
    assert any(f"swiglu.metal:{line}: rejected: Metal has no double" in fault for fault in faults)
