"""The headers of MLX's wheel: each that a kernel can include compiles, and the matrix product in them runs right."""

import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.kernels.conftest import Run
from tiny_llm.kernels.sim import KernelError, Simulator, compiler, metal_kernel, wheel

FOLDER = compiler.mlx_include() / wheel.KERNELS
NAMES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.h"))
NEEDS_MATRIX_UNITS = (  # they include MetalPerformancePrimitives, which only Apple's compiler for M5 and later has
    "fp_quantized_nax.h",
    "gated_delta_nax_ops.h",
    "gated_delta_update_nax.h",
    "gated_delta_update_nax_vjp.h",
    "quantized_nax.h",
    "steel/attn/kernels/steel_attention_nax.h",
    "steel/attn/nax.h",
    "steel/gemm/gemm_nax.h",
    "steel/gemm/kernels/steel_gemm_fused_nax.h",
    "steel/gemm/kernels/steel_gemm_gather_nax.h",
    "steel/gemm/kernels/steel_gemm_segmented_nax.h",
    "steel/gemm/kernels/steel_gemm_splitk_nax.h",
    "steel/gemm/kernels/steel_gemm_thin_nax.h",
    "steel/gemm/nax.h",
)
FIRST = {  # headers that do not name what they need; MLX's own files include these before them
    r"reduction/ops\.h": ["atomic.h"],
    r"reduction/reduce_.*|reduce\.h": ["reduce_utils.h"],
    r"indexing/scatter.*": ["atomic.h", "indexing/indexing.h", "reduction/ops.h"],
    r"indexing/gather.*": ["indexing/indexing.h"],
    r"scan\.h": ["binary_ops.h"],
    r"searchsorted\.h": ["sort.h"],
    r"fft\.h": ["steel/defines.h"],
    r"quantized\.h|fp_quantized\.h": ["steel/gemm/gemm.h", "quantized_utils.h"],
    r"steel/gemm/kernels/.*": ["steel/gemm/gemm.h"],
    r"steel/conv/.*": ["steel/defines.h", "steel/utils.h", "steel/conv/params.h"],
    r"steel/conv/kernels/.*": ["steel/gemm/mma.h", "steel/conv/conv.h"],
    r"steel/conv/kernels/steel_conv_general\.h": ["steel/conv/loaders/loader_general.h"],
    r"steel/conv/loaders/loader_channel_n\.h": ["steel/conv/loaders/loader_channel_l.h"],
}


def including(*names: str) -> str:
    return "".join(f'#include "{wheel.KERNELS}{name}"\n' for name in names)


def test_the_list_is_of_the_wheel() -> None:
    assert len(NAMES) > 80
    assert set(NEEDS_MATRIX_UNITS) <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_MATRIX_UNITS])
def test_a_kernel_can_include_it(name: str, run: Run) -> None:
    first = [header for pattern, headers in FIRST.items() if re.fullmatch(pattern, name) for header in headers]
    got = run("out[thread_position_in_grid.x] = 1;", header=including(*first, name))
    assert got[0].tolist() == [1] * 64


@pytest.mark.parametrize("name", NEEDS_MATRIX_UNITS)
def test_the_others_say_what_they_lack(name: str, run: Run) -> None:
    with pytest.raises(KernelError, match=r"MetalPerformancePrimitives|NAX|steel|elem_to_loc_broadcast|tiles_n"):
        run("out[thread_position_in_grid.x] = 1;", header=including(name))


GEMM = """
typedef mlx::steel::GEMMKernel<{T}, {T}, 32, 32, 16, 2, 2, {ta}, {tb}, false, false, float> Product;
threadgroup {T} tile_a[Product::tgp_mem_size_a];
threadgroup {T} tile_b[Product::tgp_mem_size_b];
const mlx::steel::GEMMParams params = {{
    m, n, k, {lda}, {ldb}, n, (n + 31) / 32, (m + 31) / 32, 0, 0, 0, 0, k / 16, 1}};
Product::run(a, b, out, &params, tile_a, tile_b, thread_index_in_simdgroup, simdgroup_index_in_threadgroup,
             threadgroup_position_in_grid, thread_position_in_threadgroup);
"""


@pytest.mark.parametrize(("dtype", "name", "tolerance"), [(mx.float32, "float", 1e-5), (mx.float16, "half", 1e-2)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("size", [(32, 32, 16), (40, 50, 36)])
def test_the_matrix_product_of_steel(
    size: tuple[int, int, int], transposed: bool, dtype: mx.Dtype, name: str, tolerance: float
) -> None:
    """`steel/gemm/mma.h` by way of gemm.h: A (M, K) B (K, N), with B as it is or stored as (N, K)."""
    m, n, k = size
    a = mx.random.normal((m, k), key=mx.random.key(0)).astype(dtype)
    b = mx.random.normal((n, k) if transposed else (k, n), key=mx.random.key(1)).astype(dtype)
    body = GEMM.format(T=name, ta="false", tb=str(transposed).lower(), lda="k", ldb="k" if transposed else "n")
    kernel = metal_kernel("gemm", ["a", "b", "m", "n", "k"], ["out"], body, including("steel/gemm/gemm.h"))
    (got,) = kernel(
        inputs=[a, b, m, n, k],
        grid=(-(-n // 32) * 32, -(-m // 32) * 2, 2),
        threadgroup=(32, 2, 2),
        output_shapes=[(m, n)],
        output_dtypes=[dtype],
        simulator=Simulator(check=True),
    )
    exact = [np.array(x.astype(mx.float32), np.float64) for x in (a, b)]
    want = exact[0] @ (exact[1].T if transposed else exact[1])
    np.testing.assert_allclose(np.array(got.astype(mx.float32)), want, atol=tolerance * k**0.5)


def test_threadgroup_memory_of_an_included_function_is_the_groups(run: Run) -> None:
    """Included text was not rewritten: each thread had a tile of its own, and the sum was wrong without a word."""
    body = (
        "int n = 300; logsumexp<float>(x0, out, n, threadgroup_position_in_grid.x, thread_position_in_threadgroup.x, "
        "thread_index_in_simdgroup, simdgroup_index_in_threadgroup);"
    )
    x = 4 * mx.random.normal((300,), key=mx.random.key(0))
    options: dict[str, Any] = {"header": including("logsumexp.h"), "output_shapes": [(1,)]}
    (got,) = run(body, [x], n=96, group=96, **options)
    np.testing.assert_allclose(got.item(), np.log(np.exp(np.array(x, np.float64)).sum()), rtol=1e-6)


def test_complex_numbers(run: Run) -> None:
    """MLX's own operators; the simulator's former stand-in had none."""
    body = (
        "uint i = thread_position_in_grid.x;\n"
        "complex64_t z = complex64_t(x0[i], 1) * complex64_t(0, 1) / complex64_t(2);\n"
        "out[i] = z.real * 10 + z.imag;"
    )
    (got,) = run(body, [mx.arange(64).astype(mx.float32)])
    np.testing.assert_allclose(np.array(got), -5 + np.arange(64) / 2)
