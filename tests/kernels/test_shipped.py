"""MLX's own kernels, from the headers in its wheel, run right: the simulator knows Metal, not only our habits."""

import re
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tiny_llm.kernels.sim import Simulator, compiler, metal_kernel

CONSTANT = re.compile(r"constant (\w+) (\w+) \[\[function_constant\(\d+\)\]\];")


def shipped(name: str, **constants: str) -> str:
    """A header as text, its function constants given values (false where not named)."""
    text = (compiler.mlx_include() / "mlx/backend/metal/kernels" / name).read_text()
    return CONSTANT.sub(lambda found: f"static const {found[1]} {found[2]} = {constants.get(found[2], '0')};", text)


def launch(
    header: str, body: str, inputs: dict[str, Any], shape: tuple[int, ...], dtype: mx.Dtype, **sizes: Any
) -> Any:
    kernel = metal_kernel("shipped", list(inputs), ["out"], body, header)
    return kernel(inputs=list(inputs.values()), output_shapes=[shape], output_dtypes=[dtype], **sizes)[0]


def exact(x: mx.array) -> Any:
    return np.array(x.astype(mx.float32), np.float64)


def softmax_of(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float32, 1e-6), (mx.float16, 1e-3), (mx.bfloat16, 8e-3)], ids=str)
@pytest.mark.parametrize(("kernel", "width"), [("softmax_single_row", 300), ("softmax_looped", 5000)])
def test_softmax(kernel: str, width: int, dtype: mx.Dtype, tolerance: float) -> None:
    x = (4 * mx.random.normal((3, width), key=mx.random.key(0))).astype(dtype)
    threads = 1024 if "looped" in kernel else 96  # as MLX launches them: the looped one needs all simdgroups
    body = (
        f"int n = width; {kernel}<T, float>(x, out, n, threadgroup_position_in_grid.x, "
        f"thread_position_in_threadgroup.x, {'threads_per_threadgroup.x, ' if 'looped' in kernel else ''}"
        "thread_index_in_simdgroup, simdgroup_index_in_threadgroup);"
    )
    got = launch(
        shipped("softmax.h"), body, {"x": x, "width": width}, x.shape, dtype,
        grid=(3 * threads, 1, 1), threadgroup=(threads, 1, 1), template=[("T", dtype)],
        simulator=Simulator(check=True, seed=1),
    )  # fmt: skip
    np.testing.assert_allclose(exact(got), softmax_of(exact(x)), atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float32, 1e-6), (mx.float16, 2e-3), (mx.bfloat16, 2e-2)], ids=str)
@pytest.mark.parametrize("causal", ["false", "true"])
def test_attention_of_single_queries(causal: str, dtype: mx.Dtype, tolerance: float) -> None:
    heads, kv_heads, queries, keys, dim = 4, 2, 3, 70, 64
    q, k, v = (
        mx.random.normal(shape, key=mx.random.key(i)).astype(dtype)
        for i, shape in enumerate([(heads, queries, dim), (kv_heads, keys, dim), (kv_heads, keys, dim)])
    )
    body = (
        "sdpa_vector<T, 64>(q, k, v, out, group, keys, head, row, head, row, scale, 0, 0, none, none, none, 0, none, "
        "threadgroup_position_in_grid, threadgroups_per_grid, simdgroup_index_in_threadgroup, "
        "thread_index_in_simdgroup);"
    )
    scalars = {"group": heads // kv_heads, "keys": keys, "scale": dim**-0.5, "none": 0}
    strides = {"head": mx.array(keys * dim, mx.uint64), "row": mx.array(dim, mx.uint64)}
    got = launch(
        shipped("sdpa_vector.h", do_causal=causal), body, {"q": q, "k": k, "v": v, **scalars, **strides},
        q.shape, dtype, grid=(heads * 1024, queries, 1), threadgroup=(1024, 1, 1), template=[("T", dtype)],
        simulator=Simulator(check=True),
    )  # fmt: skip
    k64, v64 = (np.repeat(exact(x), heads // kv_heads, axis=0) for x in (k, v))
    scores = exact(q) @ k64.swapaxes(1, 2) * dim**-0.5
    if causal == "true":
        scores[:, ~np.tri(queries, keys, keys - queries, dtype=bool)] = -np.inf
    np.testing.assert_allclose(exact(got), softmax_of(scores) @ v64, atol=tolerance)


def test_logsumexp() -> None:
    x = 4 * mx.random.normal((3, 300), key=mx.random.key(0))
    body = (
        "int n = width; logsumexp<float>(x, out, n, threadgroup_position_in_grid.x, thread_position_in_threadgroup.x, "
        "thread_index_in_simdgroup, simdgroup_index_in_threadgroup);"
    )
    sizes = {"grid": (3 * 96, 1, 1), "threadgroup": (96, 1, 1), "simulator": Simulator(check=True)}
    got = launch(shipped("logsumexp.h"), body, {"x": x, "width": 300}, (3,), mx.float32, **sizes)
    np.testing.assert_allclose(exact(got), np.log(np.exp(exact(x)).sum(-1)), rtol=1e-6)
